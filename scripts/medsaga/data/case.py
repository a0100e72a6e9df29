"""A case of a datalist: its files, its name and its patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medsaga.reading import name_without_suffix
from medsaga.transforms.orient_slices import ALL_PLANES, AXES

__all__ = ["case_name", "cut_in", "files_of", "inputs_of", "patient_of", "without_label"]


_FILES = ("image", "label")


def inputs_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a case that reading uses: ``image`` and, where it has them, ``label`` and ``labelled_slices``."""
    return {key: case[key] for key in (*_FILES, "labelled_slices") if key in case}


def without_label(case: Mapping[str, Any]) -> dict[str, Any]:
    """What a case says of its image: ``image`` and, where it has them, ``name`` and ``patient``."""
    return {key: case[key] for key in ("image", "name", "patient") if key in case}


def cut_in(cases: Sequence[dict], plane: str | None) -> list[dict]:
    """Cases to cut slices from: those given, or with ``plane="all"`` each of them once for each plane, as ``plane``."""
    if plane != ALL_PLANES:
        return list(cases)
    return [{**case, "plane": name} for case in cases for name in AXES]


def files_of(case: Mapping[str, Any]) -> list[str]:
    """Paths of all files of a case, the image's first.

    Args:
        case: its ``image`` is a path, or a list of one path a sequence; its ``label`` a path, or for each class a path
            or a list of paths, one an instance.
    """
    return [path for key in _FILES if key in case for path in _paths(case[key])]


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _paths(inner)
    else:
        yield str(value)


def case_name(case: Mapping[str, Any]) -> str:
    """The case's ``name``, else the name of its image (of several, the first) without suffix."""
    return str(case["name"]) if "name" in case else name_without_suffix(files_of(case)[0])


def patient_of(case: Mapping[str, Any]) -> str:
    """The case's ``patient``, or its name where none is named (then each image is a patient of its own)."""
    return str(case["patient"]) if "patient" in case else case_name(case)
