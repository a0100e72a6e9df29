"""Training slices of several modalities, each with its share of an epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping

import numpy as np

from .sampler import EpochSampler
from .slice_dataset import SliceDataset

__all__ = ["OTHERS", "BalancedSampler"]

# the share of all modalities that are not named
OTHERS = "others"
# added to the epoch of a slice that is repeated in one epoch; larger than any training's number of epochs
_AGAIN = 1 << 32

logger = logging.getLogger(__name__)


class BalancedSampler(EpochSampler):
    """``(epoch, index)`` pairs as :class:`~medsaga.data.EpochSampler` gives them, with a fixed share for each modality.

    An epoch has as many pairs as the data set has slices. A modality with more slices than its share gets other slices
    in each epoch, drawn without replacement. The slices of a modality with fewer are repeated; their numbers of
    repetitions differ by at most one. A slice that is repeated in an epoch has another number in place of the epoch's,
    so that its augmentation differs. The order depends on seed and epoch alone. Of several processes, each draws its
    part, as with ``DistributedSampler``.

    Args:
        dataset: slices of cases, each with a ``modality``, for example ``"CT"``. Cases without one are among
            ``"others"``.
        shares: parts of an epoch by modality, which sum to 1; ``"others"`` is the share of all modalities not named,
            in which each slice counts the same. The share of modalities without any slice goes to the rest in
            proportion, with a warning.
        seed: of the draw.

    Raises:
        ValueError: shares that are not positive or do not sum to 1, a modality without a share.

    Source:
        CT 0.4, MR 0.1 and the other nine together 0.5: LoRA on LiteMedSAM in the CVPR 2024 "MedSAM on Laptop"
        challenge.
    """

    def __init__(self, dataset: SliceDataset, shares: Mapping[str, float], seed: int = 0) -> None:
        super().__init__(dataset, seed)
        if min(shares.values(), default=0) <= 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
            raise ValueError(f"shares must be positive and sum to 1, got {dict(shares)}.")
        members: dict[str, list[int]] = {name: [] for name in shares}
        for index, (number, _) in enumerate(dataset.slices):
            case = dataset.cases[number].case
            modality = case.get("modality")
            group = modality if modality in shares else OTHERS
            if group not in shares:
                raise ValueError(
                    f"{case['image']} is of modality {modality!r}, but shares has only {', '.join(shares)}. Add this "
                    f"modality to shares, or add {OTHERS!r} for all modalities that are not named."
                )
            members[group].append(index)
        if absent := [name for name, indices in members.items() if not indices]:
            logger.warning(f"No training slice is of {', '.join(absent)}: the other modalities get its share.")
        self.members = [np.array(indices) for indices in members.values() if indices]
        weights = np.array([shares[name] for name, indices in members.items() if indices])
        self.counts = _whole(weights / weights.sum() * len(dataset))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        pairs = [
            (self.epoch + again * _AGAIN, int(index))
            for members, count in zip(self.members, self.counts)
            for again, start in enumerate(range(0, count, len(members)))
            for index in random.permutation(members)[: count - start]
        ]
        pairs = [pairs[i] for i in random.permutation(len(pairs))]
        # the same number for each process; the first pairs are repeated where the total does not divide
        pairs = [pairs[i % len(pairs)] for i in range(self.total_size)]
        return iter(pairs[self.rank : self.total_size : self.num_replicas])


def _whole(parts: np.ndarray) -> list[int]:
    """Whole numbers with the same sum, those with the largest remainders rounded up."""
    counts = np.floor(parts + 1e-9).astype(int)
    up = np.argsort(counts - parts, kind="stable")[: round(parts.sum()) - counts.sum()]
    counts[up] += 1
    return counts.tolist()
