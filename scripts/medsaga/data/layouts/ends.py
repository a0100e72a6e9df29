"""What the names of an examination's files have in common, one file a sequence."""

from __future__ import annotations

import os
from collections.abc import Sequence

from medsaga.reading import name_without_suffix

from .layout import Case

__all__ = ["common_start", "ends_of_files"]


def common_start(names: Sequence[str]) -> str:
    """The beginning that names share, without a part of a word and the sign behind it: of a_t1 and a_t2 it is a."""
    start = next((n for n, letters in enumerate(zip(*names)) if len(set(letters)) > 1), min(map(len, names)))
    while start and names[0][start - 1].isalnum():  # T1 and T2 differ by more than their numbers
        start -= 1
    return names[0][: start - (start > 0 and names[0][start - 1] in "_-")]


def ends_of_files(cases: list[Case]) -> tuple[str, ...] | None:
    """Ends of the names of the sequences' files, where all cases have the same and the files lie side by side."""
    first = [name_without_suffix(path) for path in cases[0]["image"]]
    start = len(common_start(first))
    ends = tuple(name[start:] for name in first)
    for case in cases:
        names = [name_without_suffix(path) for path in case["image"]]
        starts = {name[: len(name) - len(end)] for name, end in zip(names, ends)}
        folders = {os.path.dirname(path) for path in case["image"]}
        fits = all(name.endswith(end) for name, end in zip(names, ends))
        if not fits or len(starts) != 1 or len(folders) != 1:
            return None
    return ends if all(ends) else None
