from .compare import compare_labels
from .methods import DiceScore, HausdorffScore
from .submission import score_submission

__all__ = ["DiceScore", "HausdorffScore", "compare_labels", "score_submission"]
