from .check_case import CheckCased
from .fit_square import FitSquared, fit_square, undo_fit_square

__all__ = ["CheckCased", "FitSquared", "fit_square", "undo_fit_square"]
