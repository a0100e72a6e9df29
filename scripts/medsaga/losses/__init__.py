from .dice_ce import LogitResolutionDiceCELoss
from .dice_focal import LogitResolutionDiceFocalLoss

__all__ = ["LogitResolutionDiceCELoss", "LogitResolutionDiceFocalLoss"]
