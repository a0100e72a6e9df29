"""What a training step takes in memory: accounted by category, measured, predicted, and made to fit a GPU."""

from .accounting import CATEGORIES, MemoryAccounting
from .measure import Measurement, measure
from .predict import predict
from .setup import Setup

__all__ = ["CATEGORIES", "Measurement", "MemoryAccounting", "Setup", "measure", "predict"]
