"""Left and right exchanged at random, in slices that show both."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import RandFlipd

__all__ = ["RandMirrord"]


class RandMirrord(RandFlipd):
    """MONAI's ``RandFlipd`` along the columns of slices (C, H, W), which run to the left in axial and coronal ones.

    In sagittal slices they run to the back: data whose ``plane`` is ``sagittal`` are left as they are.

    Args:
        keys: of image and label.
        prob: of flipping.
    """

    def __init__(self, keys: str | list[str], prob: float = 0.5) -> None:
        super().__init__(keys, prob, spatial_axis=1)

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        return dict(data) if data.get("plane") == "sagittal" else super().__call__(data, lazy)
