from .dice_ce import LogitResolutionDiceCELoss

__all__ = ["LogitResolutionDiceCELoss"]
