"""A slice network on whole images and volumes in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

from medsaga.transforms import fit_square, undo_fit_square

__all__ = ["SliceBatchInferer"]


class SliceBatchInferer(Inferer):
    """Run a 2-D network over the slices of the last axis, a batch at a time, and keep class numbers only.

    MONAI's ``SliceInferer`` returns the logits of the whole volume, volume × classes × full resolution; here only one
    batch of logits ever exists, so memory does not grow with the number of slices beyond the label map itself.

    Args:
        image_size: side S of the network's square input, in pixels; slices are fitted to it, logits taken back.
        batch_size: slices a batch.
    """

    def __init__(self, image_size: int, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.image_size = image_size
        self.batch_size = batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Args:
            inputs: (B, C, H, W) images or (B, C, H, W, D) volumes, intensities in [0, 1].
            network: (b, C, S, S) → class logits (b, k, h, h).

        Returns:
            class numbers, uint8, (B, 1, H, W) or (B, 1, H, W, D).
        """
        volume = inputs.ndim == 5
        images = convert_to_tensor(inputs, track_meta=False)
        # (B, C, H, W, D) → (B·D, C, H, W): for B = 1 a view of the volume, no copy until a batch is cut from it
        slices = images.permute(0, 4, 1, 2, 3).flatten(0, 1) if volume else images
        shape = tuple(slices.shape[-2:])
        labels = torch.empty((len(slices), *shape), dtype=torch.uint8, device=slices.device)
        for start in range(0, len(slices), self.batch_size):
            batch = fit_square(slices[start : start + self.batch_size].float(), self.image_size)
            logits = undo_fit_square(network(batch, *args, **kwargs), self.image_size, shape)
            labels[start : start + self.batch_size] = logits.argmax(dim=1).to(torch.uint8)
        if volume:
            labels = labels.unflatten(0, (inputs.shape[0], inputs.shape[4])).permute(0, 2, 3, 1)
        # the image's affine goes with its label map
        return convert_to_dst_type(labels.unsqueeze(1), inputs, dtype=torch.uint8)[0]
