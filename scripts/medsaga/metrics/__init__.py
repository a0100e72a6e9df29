from .mean_dice import MeanDice, better
from .segmentation import segmentation_metrics

__all__ = ["MeanDice", "better", "segmentation_metrics"]
