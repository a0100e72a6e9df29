from .learning_curve import Forecast, forecast, seed_error
from .mean_dice import MeanDice, better
from .segmentation import segmentation_metrics

__all__ = ["Forecast", "MeanDice", "better", "forecast", "seed_error", "segmentation_metrics"]
