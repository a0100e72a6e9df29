"""How many more labels a model needs, as far as its versions tell."""

from __future__ import annotations

from collections.abc import Sequence

from lib.model_versions import Version
from medsaga.metrics import forecast, seed_error

__all__ = ["what_more_labels_bring"]

_ERROR = 0.05  # of a Dice that was measured on one label


def what_more_labels_bring(versions: Sequence[Version]) -> str:
    """The learning curve up to the last version, continued to twice its labels; and the class with the lowest score.

    Args:
        versions: of a model, the oldest first.

    Returns:
        a sentence or two; empty where the last version has no score.
    """
    scored = [version for version in versions if version.score is not None and version.trained_on]
    if not scored or scored[-1] is not versions[-1]:
        return ""
    last = scored[-1]
    counts = [len(version.trained_on) for version in scored]
    says = []
    if len(set(counts)) > 1:
        errors = [max(seed_error(version.score), version.score_error or _ERROR) for version in scored]
        twice = forecast(counts, [version.score for version in scored], 2 * counts[-1], errors)
        says.append(f"with {twice.count} labels a Dice of {twice} is expected")
        if not twice.pays(last.score):
            says[-1] += ", so more of them will help little"
    if len(last.class_scores) > 1:
        name = min(last.class_scores, key=last.class_scores.__getitem__)
        says.append(f"lowest class: {name}, {last.class_scores[name]:.3f}")
    return "; ".join(says)
