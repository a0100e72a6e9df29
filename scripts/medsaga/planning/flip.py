"""Whether a training may mirror slices."""

from __future__ import annotations

import re

from .choice import Choices
from .findings import Findings

__all__ = ["choose_flip", "tells_sides"]

_SIDES = re.compile(
    r"(?<![a-z])(left|right|lh|rh|l|r|sin(istra)?|dex(tra)?|links|rechts|gauche|droite?)(?![a-z])", re.I
)
# organs that a mirrored picture would put on the wrong side, or turn to another shape
_ONE_SIDED = re.compile(
    r"liver|hepat|spleen|splen|stomach|gastr|gall|pancrea|duoden|aort|cava|heart|cardi|atri|ventric|\b[lr][av]\b|lvc|"
    r"rvc|colon|c(a)?ecum|appendix|portal|thymus|o?esophag",
    re.I,
)
# structures that may lie anywhere
_ANYWHERE = re.compile(
    r"lesion|tumou?r|cancer|carcinoma|nodule|polyp|stroke|infarct|o?edema|necro|metast|h(a)?emorrhage|h(a)?ematoma|cyst|"
    r"nucle|cell|melanoma|infection|ulcer|enhanc|plaque|\bmass\b|wmh|wound|instrument|object",
    re.I,
)


def tells_sides(findings: Findings) -> str:
    """How the classes tell left from right; empty where they do not."""
    named = [one.name for one in findings.classes if _SIDES.search(one.name.replace("_", " "))]
    if named:
        return f"the names of the classes tell left from right ({named[0]})"
    pairs = [one for one in findings.classes if one.mirrors]
    if pairs:
        return f"{pairs[0].name} and {pairs[0].mirrors} lie side by side like mirror images"
    return ""


def choose_flip(findings: Findings, choices: Choices) -> None:
    """Choose ``flip``: left and right are exchanged in half of the training slices, or never."""
    choices.choose("flip", *_flip(findings, choices["plane"]))


def _flip(found: Findings, plane: str | None) -> tuple[bool, str]:
    if plane == "sagittal" or (plane == "auto" and found.planes.get("sagittal", 0) > 0.5 * found.cases):
        return False, "No: sagittal slices have front and back where others have left and right."
    if sides := tells_sides(found):
        return False, f"No: {sides}, and a mirrored slice would teach the wrong one."
    if organ := [one.name for one in found.classes if _ONE_SIDED.search(one.name)]:
        return False, f"No: {organ[0]} is on one side of the body or has no mirror image, so a mirrored slice is wrong."
    others = [one for one in found.classes if not _ANYWHERE.search(one.name)]
    if found.instances or not others:
        what = "objects that are told apart" if found.instances else found.classes[0].name
        return True, f"Yes: {what} may be anywhere, so a mirrored slice is as good as another."
    if one_sided := [one for one in others if one.one_sided]:
        one = one_sided[0]
        share = max(one.left, 1 - one.left)
        side = "left" if one.left > 0.5 else "right"
        return False, f"No: {one.name} is in the {side} half of the slice in {share:.0%} of the cases."
    if any(one.one_sided is None for one in others):
        return (
            False,
            "No: there are too few cases to see whether the classes are always on one side. Give `--flip` if a "
            "mirrored slice would be as good.",
        )
    return True, "Yes: the classes lie in the middle or on both sides, so a mirrored slice is as good as another."
