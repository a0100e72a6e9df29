from .compare import compare_labels
from .methods import DiceScore, HausdorffScore
from .submission import SCORES_FILE, score_submission

__all__ = ["SCORES_FILE", "DiceScore", "HausdorffScore", "compare_labels", "score_submission"]
