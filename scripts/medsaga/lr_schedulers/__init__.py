"""Learning rate schedules."""

from .warmup import WarmupPolynomialLR

__all__ = ["WarmupPolynomialLR"]
