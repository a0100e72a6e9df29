from .metrics_table import MetricsTable
from .moving_average import MovingAverage
from .overlay_pictures import OverlayPictures
from .progress import Progress
from .training_state import TrainingState

__all__ = ["MetricsTable", "MovingAverage", "OverlayPictures", "Progress", "TrainingState"]
