from .metrics_table import MetricsTable
from .overlay_pictures import OverlayPictures
from .progress import Progress
from .training_state import TrainingState

__all__ = ["MetricsTable", "OverlayPictures", "Progress", "TrainingState"]
