"""Patients of whom there are several images, told by the images' names where that is certain."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["patient_rule"]

_PART = r"(?:frame|fr|slice|slc|ses|session|visit|timepoint|time|tp|phase|view)"
_SIDE = r"(?:left|right|l|r|od|os)"
_RULES = (
    r"(sub-[A-Za-z0-9]+)(?:_.*)?$",
    rf"(?i)(.+?)[-_ ]{_PART}[-_ ]?\d+(?:[-_ ].*)?$",
    r"(?i)((?:patient|subject|subj|pat)[-_ ]?\d+)(?:[-_ ].*)?$",
    r"(?i)((?:.*[-_ ])?case[-_ ]?\d+)(?:[-_ ](?:slice)?[-_ ]?\d+)?$",
    rf"(?i)(.+?)[-_ ]{_SIDE}$",
)


def patient_rule(names: Sequence[str]) -> tuple[str, str] | None:
    """A regular expression of the patient in names, and what to say of it.

    Args:
        names: of all cases, without suffix.

    Returns:
        expression whose first group is the patient, and a sentence; None where no rule fits every name, or each
        name would be a patient of its own.
    """
    for rule in _RULES:
        expression = re.compile(rule)
        found = [expression.match(name) for name in names]
        if all(found):
            number = len({match[1] for match in found if match})
            if 1 < number < len(names):
                return rule, (
                    f"The {len(names)} cases are of {number} patients, as their names say ({rule}): all cases of a "
                    "patient are in the same part of a split."
                )
    return None
