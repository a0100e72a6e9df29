"""Which classes labels show: their values, names, frequency and sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medsaga.bundle.literals import literal
from medsaga.reading.labels import WHITE

from .facts import CaseFacts, ClassFacts

__all__ = ["ClassFinding", "checked_names", "class_findings", "label_values", "mirrored", "outside", "whitened"]

_FEW_VALUES = 64  # a label with more values does not hold classes
_MANY_OBJECTS = 12  # from this number on, consecutive numbers that differ from case to case count objects
_LEAST_CASES = 5  # least number of cases that shows on which side a class can lie
_ALIKE = 0.08  # of the slice: largest distance between the rows of mirrored classes
_APART = 0.1  # and smallest distance between their columns
_OFF_MIDDLE = 0.1  # of the slice: a class whose centre is nearer lies in the middle
_BOTH = 0.2  # share of the rarer side from which a class counts as on both sides


@dataclass(frozen=True)
class ClassFinding:
    """One class.

    Attributes:
        name: of the class.
        value: of it in the labels, 1 for instances.
        cases: share of the labelled cases that show it.
        slices: share of all slices.
        voxels: share of all voxels.
        diameter: typical equivalent diameter of its objects in a slice, in pixels; median over the cases.
        column: mean of its centre over the cases, from 0 (left edge of the slice) to 1.
        left: share of the cases in which its centre is left of the slice's middle.
        seen: cases that show it.
        whole: share of its voxels that are in its largest connected component; smallest value over the cases.
        mirrors: name of the class that lies on the other side like a mirror image; empty where there is none.
    """

    name: str
    value: int = 1
    cases: float = 1.0
    slices: float = 1.0
    voxels: float = 0.1
    diameter: float = 20.0
    column: float = 0.5
    left: float = 0.5
    seen: int = 10
    whole: float = 0.0
    mirrors: str = ""

    @property
    def one_sided(self) -> bool | None:
        """Whether it always lies on one side of the slice; None where there are too few cases to say."""
        if self.seen < _LEAST_CASES:
            return None
        return abs(self.column - 0.5) > _OFF_MIDDLE and min(self.left, 1 - self.left) < _BOTH


def whitened(
    good: Sequence[tuple[Mapping, CaseFacts]], classes: Mapping[str, int] | None
) -> list[tuple[Mapping, CaseFacts]]:
    """Facts with 1 for white (255), where labels are masks of one class: reading takes both for 1.

    Args:
        good: cases and their facts.
        classes: value by name, where an index says it.
    """
    values = {one.values for _, one in good if one.labelled}
    one_class = classes is None or len(classes) == 1
    if not one_class or not values <= {(), (1,), *((white,) for white in WHITE)}:
        return list(good)
    return [(case, replace(one, values=(1,), classes={1: one.foreground}) if one.values else one) for case, one in good]


def label_values(
    facts: Sequence[CaseFacts], classes: Mapping[str, int] | None, stated: list[int] | str | None = None
) -> tuple[list[int] | str, list[str]]:
    """Values that stand for classes in the labels, in their order, or ``"instances"``; and what is odd about them.

    Args:
        facts: of the cases.
        classes: value by name, where an index says it.
        stated: the values that a user has given.
    """
    labelled = [one for one in facts if one.foreground]
    if stated is not None:
        return stated, []
    if classes:
        return [1] if len(classes) == 1 and set(classes.values()) <= {*WHITE} else sorted(classes.values()), []
    if _are_instances(labelled):
        return "instances", [
            "The labels have many consecutive numbers, which differ from case to case: they are taken as numbers of "
            "objects of one class. If they are classes, give their values with --label-values."
        ]
    counts = Counter(value for one in labelled if len(one.values) <= _FEW_VALUES for value in one.values)
    if not counts:  # images instead of labels
        return [], []
    notes = []
    rare = [value for value, number in counts.items() if number == 1]
    if len(labelled) >= _LEAST_CASES and rare and len(rare) < len(counts):
        notes.append(f"Only one label has the values {', '.join(map(str, sorted(rare)))}: are they classes?")
    return sorted(counts), notes


def _are_instances(labelled: Sequence[CaseFacts]) -> bool:
    counts = [len(one.values) for one in labelled]
    counted = [one.values == tuple(range(1, len(one.values) + 1)) for one in labelled]
    different = len(set(counts)) >= min(3, len(counts)) and len(counts) > 1
    return bool(counts) and max(counts) >= _MANY_OBJECTS and np.mean(counted) >= 0.8 and different


def outside(facts: CaseFacts, values: list[int] | str) -> str:
    """What is wrong with a label whose values are not among the classes'; empty where they are."""
    if values == "instances":
        return ""
    others = [value for value in facts.values if value not in values]
    if not others:
        return ""
    if len(facts.values) > _FEW_VALUES:
        return (
            f"it has {len(facts.values)} values: so many look like an image, or like a mask saved as JPEG, which "
            "changes values at edges. Is the label's file the right one?"
        )
    shown = ", ".join(map(str, others[:8])) + (" ..." if len(others) > 8 else "")
    return f"its values {shown} belong to no class; the classes have {', '.join(map(str, values[:20]))}."


def class_findings(
    labelled: Sequence[CaseFacts],
    values: list[int] | str,
    classes: Mapping[str, int] | None,
    names: Sequence[str] | None,
) -> tuple[ClassFinding, ...]:
    """Frequency, size and side of each class.

    Args:
        labelled: facts of the cases with a label.
        values: of :func:`label_values`.
        classes: value by name, where an index says it.
        names: what a user calls the classes.

    Raises:
        ValueError: another number of names than classes, or a name that a config would evaluate.
    """
    number = 1 if values == "instances" else len(values)
    known = {value: name for name, value in (classes or {}).items()}
    if number == 1 and len(known) == 1:
        known = dict.fromkeys(values, *known.values())
    if names is not None:
        if len(names) != number:
            stand = "one class of objects" if values == "instances" else f"the values {', '.join(map(str, values))}"
            raise ValueError(
                f"--class-names has {len(names)} names, but the labels have {number} classes ({stand}): name them in "
                "this order, without the background."
            )
        called = list(names)
    elif values == "instances":
        called = [next(iter(known.values()), "object")]
    else:
        called = [known.get(value, f"class {place + 1}") for place, value in enumerate(values)]
    called = checked_names(called)
    places = [None] if values == "instances" else values
    found = [_class(labelled, value, name) for value, name in zip(places, called)]
    pairs = mirrored(labelled, [] if values == "instances" else values)
    return tuple(
        ClassFinding(**{**vars(one), "mirrors": called[values.index(pairs[one.value])] if one.value in pairs else ""})
        for one in found
    )


def checked_names(names: Sequence[str]) -> list[str]:
    """Names of classes in plain letters, without characters that have a meaning for a terminal or a config.

    Raises:
        ValueError: an empty name, two that are equal, or one that MONAI would evaluate.
    """
    cleaned = [re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(name))).strip() for name in names]
    for name in cleaned:
        if not name:
            raise ValueError("A class has no name: name the classes with --class-names.")
        try:
            literal(name, "the name of a class")
        except ValueError as err:
            raise ValueError(f"{err} Name the classes with --class-names.") from None
    twice = [name for name, number in Counter(["background", *cleaned]).items() if number > 1]
    if twice:
        raise ValueError(f"Two classes are called {twice[0]!r}: name the classes with --class-names.")
    return cleaned


def _class(labelled: Sequence[CaseFacts], value: int | None, name: str) -> ClassFinding:
    shown = [one.foreground if value is None else one.classes.get(value) for one in labelled]
    present = [one for one in shown if one is not None]
    columns = [one.column for one in present]
    return ClassFinding(
        name=name,
        value=1 if value is None else value,
        cases=len(present) / len(labelled),
        slices=sum(one.slices for one in present) / sum(one.shape[2] for one in labelled),
        voxels=sum(one.voxels for one in present) / sum(int(np.prod(one.shape)) for one in labelled),
        diameter=float(np.median([one.diameter for one in present])) if present else 0.0,
        column=float(np.mean(columns)) if present else 0.5,
        left=float(np.mean([column < 0.5 for column in columns])) if present else 0.5,
        seen=len(present),
        whole=min((one.largest for one in present), default=0.0),
    )


def mirrored(labelled: Sequence[CaseFacts], values: Sequence[int]) -> dict[int, int]:
    """Pairs of classes that lie side by side like mirror images in nearly all cases, each pair in both orders."""
    pairs: dict[int, int] = {}
    for place, first in enumerate(values):
        for second in values[place + 1 :]:
            both = [
                (one.classes[first], one.classes[second]) for one in labelled if {first, second} <= set(one.classes)
            ]
            if len(both) >= 2 and first not in pairs and second not in pairs and _are_mirrored(both):
                pairs |= {first: second, second: first}
    return pairs


def _are_mirrored(both: Sequence[tuple[ClassFacts, ClassFacts]]) -> bool:
    gaps = np.array([second.column - first.column for first, second in both])
    rows = np.array([abs(second.row - first.row) for first, second in both])
    sizes = np.array([second.voxels / first.voxels for first, second in both])
    side = np.sign(np.median(gaps))
    alike = (np.sign(gaps) == side) & (np.abs(gaps) > _APART) & (rows < _ALIKE) & (sizes > 0.4) & (sizes < 2.5)
    return bool(np.mean(alike) >= 0.9)
