"""Learning rate schedules."""

from .plateau import ValidationPlateauLR
from .warmup import WarmupPolynomialLR

__all__ = ["ValidationPlateauLR", "WarmupPolynomialLR"]
