"""Training patches of volumes, for 3-D networks, that learn from the same labelled slices as 2-D ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from monai.utils import MAX_SEED

from medsaga.reading.labels import UNLABELLED

from .cached_case import CachedCase
from .slice_dataset import SliceDataset

__all__ = ["VolumePatches"]


class VolumePatches(SliceDataset):
    """Parts of volumes around training slices, of as many slices as a patch of a 3-D network.

    There are as many items as training slices, and item i shows slice i at a random height, so an epoch has as many
    steps as with :class:`~medsaga.data.SliceDataset`, from the same labels: slices that ``num_slices`` does not draw
    are there as images, and in the label they are 255, not labelled. Rows and columns are whole: ``transform`` pads and
    crops them.

    Args:
        data: as in :class:`~medsaga.data.SliceDataset`, volumes only.
        preprocessing: as there.
        num_classes: as there.
        cache_dir: as there.
        depth: number D of slices of a patch. Shorter volumes are taken whole.
        transform: of {"image": (C, H, W, d), "label": (1, H, W, d), "foreground": (1, H, W, d)} with d <= D; the last
            is 1 where a class other than the background is labelled. Its random parts are seeded here.
        num_slices: as there.
        min_classes: as there.
        seed: as there.
        num_workers: as there.
        class_names: as there.
        plane: as there, but not ``all``.

    Raises:
        ValueError: as there; ``plane`` is ``all``.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Compose,
        num_classes: int,
        cache_dir: str | Path,
        depth: int,
        transform: Compose | None = None,
        num_slices: int | None = None,
        min_classes: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        class_names: Sequence[str] | None = None,
        plane: str | None = None,
    ) -> None:
        if plane == "all":
            raise ValueError("plane is 'all': a 3-D network sees all planes at once; set plane to auto.")
        super().__init__(
            data,
            preprocessing,
            num_classes,
            cache_dir,
            transform,
            num_slices,
            min_classes,
            seed,
            num_workers,
            class_names,
            plane,
        )
        self.depth = depth
        self._labelled = [np.zeros(len(cached.classes), bool) for cached in self.cases]
        for labelled, shown in zip(self._labelled, self.shown_slices()):
            labelled[shown] = True

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """
        Returns:
            what ``transform`` makes of the patch; without one image (C, H, W, d), label and foreground (1, H, W, d).
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        number, position = self.slices[index].tolist()
        draws = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2)
        cached = self.cases[number]
        last = max(0, len(cached.classes) - self.depth)
        least, most = max(0, position - self.depth + 1), min(position, last)
        start = least + int(draws[1]) % (most - least + 1)
        data = self._read(cached, self._labelled[number], range(start, min(start + self.depth, len(cached.classes))))
        if self.transform is not None:
            self.transform.set_random_state(seed=int(draws[0]) % MAX_SEED)
            data = self.transform(data)
        return data

    def _read(self, cached: CachedCase, labelled: np.ndarray, positions: range) -> dict[str, Any]:
        slices = [cached.read(position) for position in positions]
        image, label = (torch.stack([one[key] for one in slices], dim=-1) for key in ("image", "label"))
        label[..., ~torch.from_numpy(labelled[positions.start : positions.stop])] = UNLABELLED
        return {"image": image, "label": label, "foreground": ((label > 0) & (label != UNLABELLED)).to(torch.uint8)}
