"""What a data set holds, from the facts of its cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medsaga.data.case import files_of, patient_of
from medsaga.data.folder_check import FoundFile

from .classes import ClassFinding, class_findings, label_values, outside, whitened
from .facts import PERCENTILES, CaseFacts
from .survey import Seen

__all__ = ["Findings", "Range", "find"]

_HU_AIR, _HU_BONE = -700, 100  # a CT's lowest and highest values lie beyond these
_HU_LOWEST, _HU_HIGHEST = -10_000, 40_000
_MODALITIES = {"MRI": "MR", "US": "US", "ULTRASOUND": "US", "CR": "XR", "DX": "XR", "X-RAY": "XR", "XRAY": "XR"}


@dataclass(frozen=True)
class Range:
    """Least, median and largest of a number over the cases."""

    least: float
    median: float
    largest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Range:
        return cls(*np.percentile(numbers, (0, 50, 100)).tolist())

    def __str__(self) -> str:
        least, median, largest = (f"{number:.4g}" for number in (self.least, self.median, self.largest))
        return median if least == largest else f"{least} to {largest} (median {median})"


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        cases: that can be used.
        patients: that these are of.
        wrong: files that cannot be used, and why.
        listed: cases of the data set, those that cannot be used included.
        kinds: how many cases have a file of each format.
        modality: ``CT``, ``MR``, ``US``, ``XR``, as an index or headers say, or ``CT`` by its values; else empty.
        hu: share of the cases whose values look like Hounsfield units.
        volumes: share of cases with a third axis.
        colour: whether pictures are in colour.
        channels: of an image.
        rows, columns, slices: sizes of the cases, slices as they are trained on.
        spacing: in a slice, and from slice to slice.
        unit: of these.
        planes: cases by the plane of their slices.
        thick: share of the cases whose slices are thick, so that their plane is the scanner's.
        intensities: median over the cases of :data:`~medsaga.planning.facts.PERCENTILES`, for each channel.
        inside: the same within labels; None where there is none.
        background: median share of the most frequent value.
        classes: of the labels, background left out.
        label_values: of the labels where they are no class numbers 1, 2, ...; "instances" where each object has one.
        instances: whether objects are told apart, by values or files of their own.
        objects: of a case, where they are told apart.
        unlabelled: cases without a label.
        empty: labels that are all background.
        slices_total: of all cases.
        foreground_slices: those that show a class.
        split: patients by the part of the data set's own split; empty where it has none.
        notes: unusual findings that are no errors.
    """

    cases: int
    patients: int
    listed: int = 0
    wrong: tuple[FoundFile, ...] = ()
    kinds: dict[str, int] = field(default_factory=dict)
    modality: str = ""
    hu: float = 0.0
    volumes: float = 0.0
    colour: bool = False
    channels: int = 1
    rows: Range = Range(256, 256, 256)
    columns: Range = Range(256, 256, 256)
    slices: Range = Range(1, 1, 1)
    spacing: tuple[Range, Range] = (Range(1, 1, 1), Range(1, 1, 1))
    unit: str = "mm"
    planes: dict[str, int] = field(default_factory=dict)
    thick: float = 0.0
    intensities: tuple[tuple[float, ...], ...] = ()
    inside: tuple[tuple[float, ...], ...] | None = None
    background: float = 0.0
    classes: tuple[ClassFinding, ...] = ()
    label_values: list | str | None = None
    instances: bool = False
    objects: Range | None = None
    unlabelled: int = 0
    empty: int = 0
    slices_total: int = 0
    foreground_slices: int = 0
    split: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def percentile(self, which: float, channel: int = 0) -> float:
        """Median over the cases of a percentile of the whole image."""
        return self.intensities[channel][PERCENTILES.index(which)]

    def within(self, which: float, channel: int = 0) -> float:
        """The same of the voxels within labels."""
        return self.inside[channel][PERCENTILES.index(which)]


def find(
    cases: Sequence[Mapping[str, Any]],
    seen: Sequence[Seen],
    classes: Mapping[str, int] | None = None,
    class_names: Sequence[str] | None = None,
    modality: str = "",
    stated: list[int] | str | None = None,
) -> Findings:
    """Put together what all cases show.

    Args:
        cases: of the data set.
        seen: what :func:`~medsaga.planning.survey.survey` says of each.
        classes: value in the labels by class name, where an index says it; background left out.
        class_names: what a user calls them, in the order of their values; background left out.
        modality: as an index or a user says.
        stated: values of the classes, in their order, or ``"instances"``, as a user has given them; None finds them.

    Raises:
        ValueError: no case can be used, with the first cause; or names for another number of classes than there are.
    """
    wrong = [row for one in seen for row in one.wrong]
    good = whitened([(case, one.facts) for case, one in zip(cases, seen) if one.facts is not None], classes)
    if not good:
        first = f" The first: {wrong[0].file}: {wrong[0].wrong}" if wrong else ""
        raise ValueError(f"None of the {len(cases)} cases can be used.{first}")
    values, notes = label_values([facts for _, facts in good], classes, stated)
    background: list[int] = []
    if isinstance(stated, list):
        background = sorted({value for _, facts in good for value in facts.values} - set(stated))
        if background:
            notes.append(f"The values {', '.join(map(str, background[:20]))} of the labels are taken as background.")
    else:
        for case, facts in good:
            if text := outside(facts, values):
                wrong.append(FoundFile(files_of({"label": case["label"]})[0], "label", wrong=text))
        good = [(case, facts) for case, facts in good if not outside(facts, values)]
    if not good:
        raise ValueError(f"None of the {len(cases)} cases can be used. The first: {wrong[0].file}: {wrong[0].wrong}")
    labelled = [facts for _, facts in good if facts.labelled]
    if not any(facts.foreground for facts in labelled):
        raise ValueError(
            f"None of the {len(good)} cases has a label with more than background, so there is nothing to learn. Name "
            "the folder of the labels with --labels."
        )
    if partly := sum(facts.partly for facts in labelled):
        notes.append(
            f"In {partly} of {len(labelled)} labels 255 is taken as 'not labelled': such voxels are used neither for "
            "training nor for scores."
        )
    found = class_findings(labelled, values, classes, class_names)
    return replace(
        _images([facts for _, facts in good], _modality(good, modality)),
        cases=len(good),
        patients=len({patient_of(case) for case, _ in good}),
        listed=len(cases),
        wrong=tuple(wrong),
        kinds=dict(Counter(kind for one in seen for kind in one.kinds)),
        classes=found,
        label_values=_stored_values(values, background),
        instances=values == "instances" or any(facts.objects for facts in labelled),
        objects=_objects(labelled, values),
        unlabelled=len(good) - len(labelled),
        empty=sum(not facts.foreground for facts in labelled),
        slices_total=sum(facts.shape[2] for facts in labelled),
        foreground_slices=sum(facts.foreground.slices for facts in labelled if facts.foreground),
        split=_split(good),
        notes=tuple(notes),
    )


def _split(good: Sequence[tuple[Mapping[str, Any], CaseFacts]]) -> dict[str, int]:
    if not any(case.get("split") for case, _ in good):
        return {}
    patients = {(str(case.get("split") or "train"), patient_of(case)) for case, _ in good}
    return dict(Counter(part for part, _ in patients))


def _stored_values(values: list[int] | str, background: list[int]) -> list | str | None:
    if background:
        return [[0, *background], *values]
    return None if values == list(range(1, len(values) + 1)) else values


def _objects(labelled: Sequence[CaseFacts], values: list[int] | str) -> Range | None:
    if values == "instances":
        return Range.of([len(facts.values) for facts in labelled])
    counts = [facts.objects for facts in labelled]
    return Range.of(counts) if any(counts) else None


def _modality(good: Sequence[tuple[Mapping[str, Any], CaseFacts]], named: str) -> str:
    if named:
        return named
    said = {str(case.get("modality") or facts.modality) for case, facts in good}
    known = {_MODALITIES.get(name.upper(), name) for name in said if name}
    return " and ".join(sorted(known)) if known and "" not in said else ""


def _looks_like_hu(facts: CaseFacts) -> bool:
    if not facts.volume or facts.channels != 1:
        return False
    low, high = (facts.intensities[0].whole[PERCENTILES.index(which)] for which in (0.5, 99.9))
    whole = facts.intensities[0].whole
    return low <= _HU_AIR and high >= _HU_BONE and whole[0] >= _HU_LOWEST and whole[-1] <= _HU_HIGHEST


def _images(facts: Sequence[CaseFacts], modality: str) -> Findings:
    hu = float(np.mean([_looks_like_hu(one) for one in facts]))
    channels = Counter(one.channels for one in facts).most_common(1)[0][0]
    alike = [one for one in facts if one.channels == channels]
    inside = [one for one in alike if all(channel.inside for channel in one.intensities)]

    def medians(which: str, of: Sequence[CaseFacts]) -> tuple[tuple[float, ...], ...]:
        stack = [[getattr(channel, which) for channel in one.intensities] for one in of]
        return tuple(tuple(channel) for channel in np.median(stack, axis=0).tolist())

    rows, columns, slices = (Range.of([one.shape[axis] for one in facts]) for axis in range(3))
    return Findings(
        cases=len(facts),
        patients=len(facts),
        modality=modality or ("CT" if hu == 1 else ""),
        hu=hu,
        volumes=float(np.mean([one.volume for one in facts])),
        colour=bool(np.mean([one.colour for one in facts]) > 0.5),
        channels=channels,
        rows=rows,
        columns=columns,
        slices=slices,
        spacing=(
            Range.of([side for one in facts for side in one.spacing[:2]]),
            Range.of([one.spacing[2] for one in facts]),
        ),
        unit=Counter(one.unit for one in facts).most_common(1)[0][0],
        planes=dict(Counter(one.plane for one in facts)),
        thick=float(np.mean([one.thick for one in facts])),
        intensities=medians("whole", alike),
        inside=medians("inside", inside) if inside else None,
        background=float(np.median([channel.background for one in facts for channel in one.intensities])),
    )
