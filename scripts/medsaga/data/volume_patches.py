"""Training patches of volumes, for 3-D networks that learn from the same labelled slices as 2-D networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medsaga.reading.labels import UNLABELLED
from medsaga.transforms.orient_slices import ALL_PLANES

from .cached_case import CachedCase
from .slice_dataset import SliceDataset

__all__ = ["VolumePatches"]


class VolumePatches(SliceDataset):
    """Parts of volumes around training slices, of as many slices as a patch of a 3-D network.

    There are as many items as training slices, and item i shows slice i at a random height, so an epoch has as many
    steps as with :class:`~medsaga.data.SliceDataset`, and the same labels are used. Slices that ``num_slices`` does not
    draw are part of the image, but are 255 (not labelled) in the label. Rows and columns are complete: ``transform``
    pads and crops them.

    Args:
        *args: as of :class:`~medsaga.data.SliceDataset`.
        depth: number D of slices of a patch. Shorter volumes are taken whole.
        **options: as of :class:`~medsaga.data.SliceDataset`. ``data`` are volumes. ``transform`` is of {"image": (C, H,
            W, d), "label": (1, H, W, d), "foreground": (1, H, W, d)} with d <= D; the last is 1 where a class other
            than the background is labelled. ``plane`` is not ``all``.

    Raises:
        ValueError: as there; ``plane`` is ``all``.
    """

    def __init__(self, *args: Any, depth: int, **options: Any) -> None:
        if options.get("plane") == ALL_PLANES:
            raise ValueError("plane is 'all': a 3-D network sees all planes at once; set plane to auto.")
        super().__init__(*args, **options)
        self.depth = depth

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """
        Returns:
            what ``transform`` makes of the patch; without one image (C, H, W, d), label and foreground (1, H, W, d).
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        number, position = self.slices[index].tolist()
        seed, draw = self._random_numbers(epoch, index, 2)
        cached = self.cases[number]
        last = max(0, len(cached.classes) - self.depth)
        least, most = max(0, position - self.depth + 1), min(position, last)
        start = least + draw % (most - least + 1)
        positions = range(start, min(start + self.depth, len(cached.classes)))
        return self._augmented(self._read(cached, self._drawn[number], positions), seed)

    def _read(self, cached: CachedCase, drawn: np.ndarray, positions: range) -> dict[str, Any]:
        slices = [cached.read(position) for position in positions]
        image, label = (torch.stack([one[key] for one in slices], dim=-1) for key in ("image", "label"))
        label[..., ~torch.from_numpy(drawn[positions.start : positions.stop])] = UNLABELLED
        return {"image": image, "label": label, "foreground": ((label > 0) & (label != UNLABELLED)).to(torch.uint8)}
