"""The order of training slices, a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from monai.data import DistributedSampler
from torch.utils.data import Dataset

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler):
    """Shuffled ``(epoch, index)`` pairs, so that a dataset can seed a sample's augmentation with both.

    MONAI's trainers call ``set_epoch`` on samplers of this kind as an epoch starts. What a step sees then depends on
    nothing but the seed, the epoch and the index: a resumed run continues as the killed one would have, and the number
    of workers changes nothing.

    Args:
        dataset: to draw from.
        seed: of the shuffle.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        # without a process group there is one replica: the same class then serves training with and without torchrun
        distributed = dist.is_available() and dist.is_initialized()
        super().__init__(
            dataset,
            shuffle=True,
            seed=seed,
            num_replicas=dist.get_world_size() if distributed else 1,
            rank=dist.get_rank() if distributed else 0,
        )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())
