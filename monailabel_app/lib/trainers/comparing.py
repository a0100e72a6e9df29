"""Whether new weights take the place of the served ones."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator

from lib.model_versions import Version
from lib.served_model import ServedModel
from lib.trainers.prompt_scores import prompt_scores
from medsaga.networks import SamSegmenter, load_weights

__all__ = ["compared", "first_verdict", "verdict", "worth_correcting"]


def worth_correcting() -> float:
    """Least Dice of a first model that is served: ``MEDSAGA_FIRST_DICE``, 0.5 by default.

    From there on a mask takes less time to correct than to draw, and prompts start from it.
    """
    return float(os.environ.get("MEDSAGA_FIRST_DICE", "0.5"))


def compared(
    evaluator: SupervisedEvaluator | None,
    network: SamSegmenter,
    model: ServedModel,
    cases: Sequence[Mapping[str, str]],
    parser: ConfigParser,
    held_back: Sequence[str],
) -> tuple[Version, bool]:
    """Score new weights, and the served ones on the same labels; measure how well new and published weights follow
    prompts.

    Args:
        evaluator: which has just run with the new weights; None without labels to score with.
        network: that it runs; it has the served weights afterwards.
        model: the bundle.
        cases: labelled ones to prompt, those held back or else those learnt from.
        parser: the bundle's training config.
        held_back: names of those held back, which the evaluator's labels are too; where there are none, the new weights
            have learnt from them, and have no score, but a first model that is wrong even there is not served.

    Returns:
        a version with the scores, and why it is served or not as its note; and whether it is to be served.
    """
    score = served_score = error = None
    by_class: dict[str, float] = {}
    prompts, published_prompts = prompt_scores(network, model, cases, parser)
    if evaluator is not None:
        score = _score(evaluator)
        by_class, error = _details(evaluator, parser["class_names"])
        if model.trained:
            load_weights(network, model.checkpoint(), trained=True)
            evaluator.run()
            served_score = _score(evaluator)
    if model.trained:
        serve, why = verdict(score, served_score)
    else:
        serve, why = first_verdict(score, bool(held_back))
    if not held_back:
        score, by_class, error = None, {}, None
    version = Version(
        score=score,
        served_score=served_score,
        held_back=list(held_back),
        note=why,
        prompt_score=prompts,
        published_prompt_score=published_prompts,
        class_scores=by_class,
        score_error=error,
    )
    if serve and prompts is not None and published_prompts is not None:
        version.note += (
            f"; prompts are answered by {'it' if version.follows_prompts else 'the published weights'}: Dice "
            f"{prompts:.3f} against {published_prompts:.3f} of the published weights"
        )
    return version, serve


def _score(evaluator: SupervisedEvaluator) -> float | None:
    """The key metric; None where it is of nothing, because no held-back label shows a class."""
    value = float(evaluator.state.metrics[evaluator.state.key_metric_name])
    return None if math.isnan(value) else value


def _details(evaluator: SupervisedEvaluator, class_names: Sequence[str]) -> tuple[dict[str, float], float | None]:
    """Mean Dice of each class that the labels show; standard error of the mean over the cases."""
    values = evaluator.state.metric_details[evaluator.state.key_metric_name]  # (cases, classes without background)
    means = zip(class_names[1:], values.nanmean(dim=0).tolist())
    by_case = values.nanmean(dim=1)
    by_case = by_case[~by_case.isnan()]
    error = float(by_case.std() / len(by_case) ** 0.5) if len(by_case) > 1 else None
    return {name: mean for name, mean in means if not math.isnan(mean)}, error


def first_verdict(score: float | None, held_back: bool) -> tuple[bool, str]:
    """Whether to serve the first weights of a bundle, and why."""
    if score is None:
        return True, "served, as the first model"
    found = f"Dice {score:.3f} on {'held-back labels' if held_back else 'the labels that it has learnt from'}"
    if score >= worth_correcting():
        return True, f"served, as the first model, {found}"
    return False, (
        f"kept but not served: {found}, less than {worth_correcting():g} (MEDSAGA_FIRST_DICE), so its masks would take "
        "longer to correct than to draw; submit more labels and train again"
    )


def verdict(score: float | None, served_score: float | None) -> tuple[bool, str]:
    """Whether new weights take the place of served ones, and why."""
    if score is None or served_score is None:
        return False, (
            "kept but not served: there is no label to compare it with the served model. It must show a class, and "
            "neither model may have learnt from it; submit another label"
        )
    compared = f"Dice {score:.3f} against {served_score:.3f} of the served model on held-back labels"
    return (True, f"served: {compared}") if score >= served_score else (False, f"kept but not served: {compared}")
