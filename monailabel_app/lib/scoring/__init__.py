from lib.scoring.compare import compare_labels
from lib.scoring.methods import DiceScore, HausdorffScore
from lib.scoring.submission import score_submission

__all__ = ["DiceScore", "HausdorffScore", "compare_labels", "score_submission"]
