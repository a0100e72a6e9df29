"""A 3-D network on whole volumes."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import convert_to_dst_type

__all__ = ["VolumeInferer"]


class VolumeInferer(SlidingWindowInferer):
    """MONAI's ``SlidingWindowInferer`` whose result is a label map, as that of :class:`SliceBatchInferer`.

    Args:
        roi_size: of a patch, in voxels: rows, columns, slices.
        kwargs: further arguments of ``SlidingWindowInferer``.
    """

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        Args:
            inputs: (B, C, H, W, D).
            network: (b, C, h, w, d) → class logits (b, k, h, w, d).

        Returns:
            class numbers, uint8, (B, 1, H, W, D).

        Raises:
            ValueError: the input is no volume.
        """
        if inputs.ndim != 5:
            raise ValueError(f"input has shape {tuple(inputs.shape)}: a 3-D network takes volumes (B, C, H, W, D)")
        logits = super().__call__(inputs, network, *args, **kwargs)
        return convert_to_dst_type(logits.argmax(dim=1, keepdim=True), inputs, dtype=torch.uint8)[0]
