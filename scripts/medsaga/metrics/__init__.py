from .learning_curve import SEED_ERROR, Forecast, forecast
from .mean_dice import MeanDice, better
from .segmentation import segmentation_metrics

__all__ = ["SEED_ERROR", "Forecast", "MeanDice", "better", "forecast", "segmentation_metrics"]
