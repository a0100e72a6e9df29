"""Training slices of a list of images and volumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from monai.utils import MAX_SEED
from torch.utils.data import Dataset

from medsaga.reading.labels import UNLABELLED

from .cached_case import CachedCase
from .case import cut_in, files_of
from .slice_cache import cache_cases

__all__ = ["SliceDataset"]

logger = logging.getLogger(__name__)

_LISTED = 10  # files that a warning names


class SliceDataset(Dataset):
    """Slices of 2-D images and volumes, all or a few drawn by seed, each read from a disk cache.

    Slices without any labelled pixel (255 in every pixel, :func:`~medsaga.reading.labels.unlabelled`) are left out.

    An item is asked for by ``(epoch, index)`` (see :class:`~medsaga.data.EpochSampler`), which with the seed decides
    its augmentation, whatever worker or process draws it.

    With ``plane="all"`` an item is the slice itself or one that crosses it in another plane of the same volume, each
    plane equally often. In a crossing slice only voxels that lie in training slices are labelled, so the same voxels
    are learnt from: each of the ``num_slices`` slices is a line in the other planes.

    Args:
        data: cases with the paths ``image`` and ``label``, MONAI Label's datalist; for pre-training ``image`` alone,
            and then items have no label.
        preprocessing: deterministic transforms of a whole case, see :func:`~medsaga.data.slice_cache.cache_cases`.
        num_classes: including background.
        cache_dir: folder of the cache.
        transform: of one slice {"image": (C, H, W), "label": (1, H, W)}, and with ``plane="all"`` the name of its
            ``plane``; its random parts are seeded here.
        num_slices: N of few-shot training, slices drawn at random from all cases; None takes all. The slices of a
            smaller N are among those of a larger one with the same seed. Where there are fewer, a warning says so.
        min_classes: only slices that show at least this many classes besides background: 0 takes any slice, 1 those
            with foreground (as MedSAGa for ISLES), 5 as MedSAGa for AMOS.
        seed: of the draw and of the augmentation.
        num_workers: processes that preprocess cases not yet in the cache.
        class_names: of all classes, background first: warn of those that none of the slices shows, and of labels that
            are all background. None skips this check.
        plane: of the slices, as :class:`~medsaga.transforms.OrientSlicesd` has it; with ``all`` they are the acquired
            slices, and slices of the other planes cross them (:func:`~medsaga.transforms.cuts`).

    Attributes:
        cases: the cached cases.
        slices: (N, 2) int32, the case and the slice of each item: 8 bytes a slice, where Python's own numbers take 100,
            in every process that loads.
        labelled: whether cases have labels.
        plane: as given.
        shortages: a sentence for each number that is smaller than the one asked for.

    Raises:
        ValueError: no case, no slice with ``min_classes``, or cases that cannot be used (with their files).
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Compose,
        num_classes: int,
        cache_dir: str | Path,
        transform: Compose | None = None,
        num_slices: int | None = None,
        min_classes: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        class_names: Sequence[str] | None = None,
        plane: str | None = None,
    ) -> None:
        if not data:
            raise ValueError("No case to train on: the list of images and labels is empty.")
        cached = cache_cases(cut_in(data, plane), preprocessing, num_classes, cache_dir, num_workers)
        planes = len(cached) // len(data)
        of_case = [cached[start : start + planes] for start in range(0, len(cached), planes)]
        # planes that a volume is not cut in have no slice
        self.cases = [max(group, key=lambda one: (one.across is None, len(one.classes))) for group in of_case]
        self._crossing = [[one for one in group if one.across is not None] for group in of_case]
        self.transform = transform
        self.plane = plane
        self.seed = seed
        self.labelled = any(case.has_label for case in self.cases)
        self.shortages: list[str] = []
        shown = [np.flatnonzero(_usable(cached, min_classes)) for cached in self.cases]
        numbers = np.repeat(np.arange(len(shown)), [len(positions) for positions in shown])
        slices = np.stack([numbers, np.concatenate(shown)], axis=1).astype(np.int32)
        if not len(slices):
            raise ValueError(f"None of the slices of {len(data)} cases shows {min_classes} or more classes.")
        if num_slices is not None:
            if num_slices > len(slices):
                # not an error: an annotator's first labels are fewer than the number a bundle was made for
                self.shortages.append(
                    f"num_slices={num_slices}, but the {len(data)} training cases have {len(slices)} slices with "
                    f"{min_classes} or more classes: all of them are taken."
                )
                logger.warning(self.shortages[-1])
            slices = slices[np.random.RandomState(seed).permutation(len(slices))[:num_slices]]
        self.slices = slices
        self._min_classes = min_classes
        drawn = {str(self.cases[number].case["image"]) for number in np.unique(slices[:, 0])}
        logger.info(f"{len(slices)} training slices of {len(drawn)} of {len(data)} cases.")
        if class_names is not None:
            self._warn(len(data), class_names)

    def _warn(self, number: int, class_names: Sequence[str]) -> None:
        if unseen := self.unseen_classes():
            logger.warning(f"No training slice shows: {', '.join(class_names[index] for index in unseen)}.")
        if empty := self.empty_labels():
            files = ", ".join(files_of({"label": case["label"]})[0] for case in empty[:_LISTED])
            more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
            logger.warning(f"{len(empty)} of {number} training labels show background only: {files}{more}.")

    def shown_slices(self) -> list[list[int]]:
        """Positions of the training slices in each case, in their order."""
        cases, positions = self.slices[np.lexsort(self.slices.T[::-1])].T
        ends = np.searchsorted(cases, np.arange(1, len(self.cases)))
        return [part.tolist() for part in np.split(positions, ends)]

    @cached_property
    def _drawn(self) -> list[np.ndarray]:
        """(D,) bool of each case: its training slices."""
        drawn = [np.zeros(len(one.classes), bool) for one in self.cases]
        for of_one, positions in zip(drawn, self.shown_slices()):
            of_one[positions] = True
        return drawn

    def unseen_classes(self) -> list[int]:
        """Classes besides background that none of the training slices shows; none where cases have no labels."""
        if not self.labelled:
            return []
        shown = zip(self.cases, self.shown_slices())
        seen = np.logical_or.reduce([case.classes[positions].any(axis=0) for case, positions in shown])
        return [int(index) for index in np.flatnonzero(~seen) if index > 0]

    def empty_labels(self) -> list[dict]:
        """The cases whose label is all background, trained on or not."""
        labelled = {str(cached.case["label"]): cached.case for cached in self.cases if cached.has_label}
        shown = {str(cached.case["label"]) for cached in self.cases if cached.classes[:, 1:].any()}
        return [case for label, case in labelled.items() if label not in shown]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        case, position = self.slices[index].tolist()
        seed, plane, draw = self._random_numbers(epoch, index, 3)
        plane %= 1 + len(self._crossing[case])
        crossing = self._across(self._crossing[case][plane - 1], self._drawn[case], draw) if plane else None
        data = self._augmented(crossing or self.cases[case].read(position), seed)
        return {key: value for key, value in data.items() if key != "plane"}

    def _across(self, cached: CachedCase, drawn: np.ndarray, draw: int) -> dict[str, Any] | None:
        """A slice of another plane, labelled where it crosses the drawn slices; None if no slice can be used."""
        positions = np.flatnonzero(_usable(cached, self._min_classes))
        if not len(positions):
            return None
        data = cached.read(int(positions[draw % len(positions)]))
        if "label" in data:
            axis, reverse = cached.across
            not_drawn = torch.from_numpy((drawn[::-1] if reverse else drawn).copy()).logical_not()
            data["label"].movedim(1 + axis, 0)[not_drawn] = UNLABELLED
        return data

    def _random_numbers(self, epoch: int, index: int, count: int) -> list[int]:
        """Random numbers of an item, the same whatever else is drawn; the first seeds its augmentation."""
        return np.random.SeedSequence([self.seed, epoch, index]).generate_state(count).tolist()

    def _augmented(self, data: dict[str, Any], seed: int) -> Any:
        """What ``transform`` makes of the data."""
        if self.transform is None:
            return data
        self.transform.set_random_state(seed=seed % MAX_SEED)
        return self.transform(data)


def _usable(cached: CachedCase, min_classes: int) -> np.ndarray:
    """(D,) bool: slices with enough classes, and with a labelled pixel where the case has a label."""
    enough = cached.classes[:, 1:].sum(axis=1) >= min_classes
    return enough & cached.classes.any(axis=1) if cached.has_label else enough
