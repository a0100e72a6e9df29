"""A preprocessed case, whose slices are read from the cache, or made again."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from .cache_build import Maker
from .cache_records import table_of
from .cache_room import slices_file
from .cache_run import Run
from .case import files_of
from .case_slices import read_slice, slices_of, trying_again
from .entry_names import identify

__all__ = ["CachedCase"]


class CachedCase:
    """One preprocessed case: its slices, each read when it is asked for, and which classes each slice shows.

    Slices that are not in the cache, because there was no room or they were removed, are made again from the case's
    files.

    Args:
        case: of a datalist.
        name: of its entry.
        record: the cache's record of it.
        maker: of the entry.
        run: keeps the entry from being removed by others.

    Attributes:
        classes: (D, k) bool; without a label all False.
        has_label: whether the case has one.
        across: how its slices cross the acquired slices, see :class:`~medsaga.data.case_slices.Slices`.
    """

    def __init__(self, case: dict, name: str, record: dict[str, Any], maker: Maker, run: Run | None) -> None:
        self.case, self.name = case, name
        self.classes: np.ndarray = table_of(record)
        self.has_label = "label" in case
        self.across: tuple[int, bool] | None = tuple(record["across"]) if "across" in record else None
        self._maker, self._run = maker, run

    def read(self, index: int) -> dict[str, Any]:
        """Slice ``index`` as {"image": (C, H, W) float32, "label": (1, H, W) uint8, "plane": its name}.

        The item has a label where the case has one, and a plane where slices of several planes are taken.

        Raises:
            ValueError: the file in the cache is damaged, or the case's own files have changed.
        """
        try:
            found = trying_again(partial(read_slice, slices_file(self._maker.cache_dir, self.name), index))
        except FileNotFoundError:
            found = _made_again(self)[index]
        item = {"image": torch.from_numpy(found["image"].astype(np.float32))}
        if self.has_label:
            item["label"] = torch.from_numpy(np.array(found["label"])[None])
        if "plane" in self.case:
            item["plane"] = self.case["plane"]
        return item

    def make(self) -> np.ndarray:
        """All slices from the case's files."""
        if identify(self.case, self.name.split("-")[1])[0] != self.name:
            raise ValueError(
                f"{', '.join(files_of(self.case))}: the case has changed since the training began, and its former "
                f"slices are no longer in {self._maker.cache_dir}. Start the training again."
            )
        return trying_again(partial(slices_of, self.case, self._maker.preprocessing)).records


@lru_cache(1)  # neighbouring slices are often asked for one after the other
def _made_again(cached: CachedCase) -> np.ndarray:
    return cached.make()
