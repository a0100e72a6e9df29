"""Whether new weights take the place of the served ones."""

from __future__ import annotations

import math

from monai.engines import SupervisedEvaluator

__all__ = ["score_of", "verdict"]


def score_of(evaluator: SupervisedEvaluator) -> float | None:
    """The key metric; None where it is of nothing, because no held-back label shows a class."""
    value = float(evaluator.state.metrics[evaluator.state.key_metric_name])
    return None if math.isnan(value) else value


def verdict(score: float | None, served_score: float | None, replaces: bool) -> tuple[bool, str]:
    """Whether to serve new weights, and why."""
    if not replaces:
        return True, "served, as the first model" + ("" if score is None else f", Dice {score:.3f} on held-back labels")
    if score is None or served_score is None:
        return False, (
            "kept but not served: no label was left to compare it with the served model, one that shows a class and "
            "that neither has learnt from; submit another one"
        )
    compared = f"Dice {score:.3f} against {served_score:.3f} of the served model on held-back labels"
    return (True, f"served: {compared}") if score >= served_score else (False, f"kept but not served: {compared}")
