"""Training chunks of neighbouring slices, for networks that look along a volume's third axis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medsaga.transforms.orient_slices import ALL_PLANES

from .cached_case import CachedCase
from .slice_dataset import SliceDataset

__all__ = ["SliceChunks"]

logger = logging.getLogger(__name__)


class _Chunks:
    """A cached case that is read a chunk at a time, the slices as channels."""

    def __init__(self, cached: CachedCase, depth: int) -> None:
        self.cached = cached
        self.case = cached.case
        self.depth = depth
        self.classes = cached.classes
        self.has_label = cached.has_label

    def read(self, start: int) -> dict[str, Any]:
        slices = [self.cached.read(start + i) for i in range(self.depth)]
        together = {key: torch.cat([item[key] for item in slices]) for key in ("image", "label")}
        return {**slices[0], **together}


class SliceChunks(SliceDataset):
    """Chunks of D neighbouring slices of volumes, as :class:`~medsaga.data.SliceDataset` has single slices.

    A volume is cut into chunks from its first slice, as :class:`~medsaga.inferers.SliceBatchInferer` cuts it; the last
    chunk ends with the last slice and may overlap the one before. All slices of a chunk are augmented alike.

    Args:
        data: cases, volumes only.
        *args: as of :class:`~medsaga.data.SliceDataset`.
        depth: number D of slices in a chunk.
        num_slices: N of few-shot training, of which N // D chunks are drawn; None takes all.
        class_names: as there.
        **options: as there; ``transform`` gets the slices of a chunk as channels, so it must treat all channels alike;
            ``min_classes`` applies to the slice of a chunk that shows the most classes; ``plane`` is not ``all``.

    Raises:
        ValueError: as there; ``plane`` is ``all``; a case has fewer slices than a chunk.
    """

    def __init__(
        self,
        data: Sequence[dict],
        *args: Any,
        depth: int,
        num_slices: int | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if options.get("plane") == ALL_PLANES:
            raise ValueError("plane is 'all', but chunks are of one plane: set plane to auto.")
        super().__init__(data, *args, **options)
        self.depth = depth
        lengths = [len(cached.classes) for cached in self.cases]
        for cached, length in zip(self.cases, lengths):
            if 0 < length < depth:
                raise ValueError(
                    f"{cached.case['image']} has {length} slice{'s' if length > 1 else ''}, but a chunk has "
                    f"depth={depth}: lower depth, or train the 2-D form of the network"
                )
        chunks = sorted({(c, min(i - i % depth, lengths[c] - depth)) for c, i in self.slices.tolist()})
        if num_slices is not None:
            wanted = max(1, num_slices // depth)
            if wanted > len(chunks):
                self.shortages.append(
                    f"num_slices={num_slices} makes {wanted} chunks, but the {len(data)} training cases have "
                    f"{len(chunks)}: all of them are taken."
                )
                logger.warning(self.shortages[-1])
            order = np.random.RandomState(self.seed).permutation(len(chunks))
            chunks = [chunks[i] for i in order[:wanted]]
        self.slices = np.array(chunks, np.int32)  # (case, first slice)
        self.cases = [_Chunks(cached, depth) for cached in self.cases]
        logger.info(f"{len(chunks)} chunks of {depth} slices.")
        if class_names is not None:
            self._warn(len(data), class_names)

    def shown_slices(self) -> list[list[int]]:
        """Positions of the training slices in each case: all of a chunk's."""
        starts = super().shown_slices()
        return [sorted({start + i for start in case for i in range(self.depth)}) for case in starts]

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """
        Returns:
            image (D, C, S, S) and label (D, 1, S, S). A batch of these is (B, D, C, S, S). ``prepare_batch`` flattens
            it to (B D, C, S, S), in which each D slices are neighbours.
        """
        data = super().__getitem__(item)
        return {key: data[key].unflatten(0, (self.depth, -1)) for key in ("image", "label")}
