"""Whether new weights take the place of the served ones."""

from __future__ import annotations

import math

from monai.engines import SupervisedEvaluator

from lib.served_model import ServedModel
from lib.versions import Version
from medsaga.networks import SamSegmenter, load_weights

__all__ = ["compared", "verdict"]


def compared(evaluator: SupervisedEvaluator | None, network: SamSegmenter, model: ServedModel) -> tuple[Version, bool]:
    """Score new weights, and the served ones on the same labels.

    Args:
        evaluator: of held-back labels, which has just run with the new weights; None without such labels.
        network: that it runs; it has the served weights afterwards.
        model: the bundle.

    Returns:
        a version with the scores, and why it is served or not as its note; and whether it is to be served.
    """
    score = served_score = None
    if evaluator is not None:
        score = _score(evaluator)
        if model.trained:
            load_weights(network, model.checkpoint())
            evaluator.run()
            served_score = _score(evaluator)
    serve, why = verdict(score, served_score, model.trained)
    return Version(score=score, served_score=served_score, note=why), serve


def _score(evaluator: SupervisedEvaluator) -> float | None:
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
