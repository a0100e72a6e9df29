"""Which classes are one connected piece in each patient."""

from __future__ import annotations

from .choice import Choices
from .findings import Findings

__all__ = ["choose_pieces"]

_WHOLE = 0.995  # share of a class's voxels in its largest component; the rest are drawing errors
_LEAST_CASES = 5


def choose_pieces(found: Findings, choices: Choices) -> None:
    """Choose ``largest_component``: of a mask of these classes only the largest connected piece is kept."""
    if found.instances:
        names, text = [], "None: the labels are objects, of which there may be several."
    else:
        whole = [one for one in found.classes if one.whole >= _WHOLE and one.seen >= _LEAST_CASES]
        names = [one.name for one in whole]
        text = (
            f"One connected piece in each of {min(one.seen for one in whole)} or more labels."
            if whole
            else (f"None: no class is one connected piece in every label, of {_LEAST_CASES} labels or more.")
        )
    choices.choose("largest_component", names, text)
