from .learning_curve import Forecast, forecast
from .mean_dice import MeanDice, better
from .segmentation import segmentation_metrics

__all__ = ["Forecast", "MeanDice", "better", "forecast", "segmentation_metrics"]
