"""Every case of a data set is read once, as a training reads it, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from medsaga.data.case import files_of
from medsaga.data.folder_check import FoundFile, read_case
from medsaga.data.over_cases import over_cases
from medsaga.failures import Failure, failure_of

from .facts import CaseFacts, measure

__all__ = ["Seen", "look", "survey"]


@dataclass(frozen=True)
class Seen:
    """The result of looking at a case.

    Attributes:
        facts: None where the case cannot be used.
        wrong: its files that cannot be used, and why.
        kinds: formats of its files, ``nii.gz`` or ``label, png``, each once.
    """

    facts: CaseFacts | None
    wrong: tuple[FoundFile, ...] = ()
    kinds: tuple[str, ...] = ()


def look(
    case: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    num_channels: int | None = None,
    plane: str | None = "auto",
) -> Seen:
    """Read a case and measure it; errors are returned, not raised.

    Args:
        case: as :func:`~medsaga.data.case.files_of` takes it.
        class_names: background first, for labels whose files say which class is which.
        num_channels: of the image, one a sequence.
        plane: as of :class:`~medsaga.transforms.OrientSlicesd`.
    """
    rows, data = read_case(case, class_names, num_channels, plane)
    kinds = tuple(dict.fromkeys(row.kind for row in rows))
    wrong = tuple(row for row in rows if row.wrong)
    if data is None:
        return Seen(None, wrong, kinds)
    try:
        modality = rows[0].kind.partition(" ")[2]  # "DICOM CT"
        return Seen(measure(data, _objects(case), modality), wrong, kinds)
    except Exception as err:
        failure = failure_of(err, files_of(case), "cannot be measured")
        return Seen(None, (FoundFile(failure.file, wrong=failure.cause),), kinds)


def _objects(case: Mapping[str, Any]) -> int:
    label = case.get("label")
    lists = [files for files in label.values() if isinstance(files, (list, tuple))] if isinstance(label, dict) else []
    return sum(map(len, lists))


def survey(
    cases: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
    num_channels: int | None = None,
    plane: str | None = "auto",
    workers: int | None = None,
) -> list[Seen]:
    """Look at all cases, several at a time, in separate processes, because a damaged file may end one.

    Args:
        cases: of a datalist.
        class_names, num_channels, plane: as for :func:`look`.
        workers: number of processes. None takes as many as cores and memory allow, and 0 only this one.

    Returns:
        for each case, in order, what :func:`look` says. A case whose reading ended its process cannot be used.
    """
    job = partial(look, class_names=class_names, num_channels=num_channels, plane=plane)
    found = over_cases(job, cases, "Looking at all cases", workers)
    return [Seen(None, (FoundFile(one.file, wrong=one.cause),)) if isinstance(one, Failure) else one for one in found]
