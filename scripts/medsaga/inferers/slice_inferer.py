"""A slice network on whole images and volumes in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

from medsaga.transforms import cuts, fit_square, undo_fit_square
from medsaga.transforms.orient_slices import ALL_PLANES

__all__ = ["SliceBatchInferer"]


class SliceBatchInferer(Inferer):
    """Run a 2-D network over the slices of the last axis, a batch at a time, and keep class numbers only.

    MONAI's ``SliceInferer`` returns the logits of the whole volume, volume × classes × full resolution; here only one
    batch of logits ever exists, so memory does not grow with the number of slices beyond the label map itself.

    With ``plane="all"`` a volume is cut in each plane of :func:`~medsaga.transforms.cuts`, and a voxel gets the class
    with the largest sum of probabilities. The sums of the whole volume are kept for that: two bytes a voxel and class.
    A volume that is cut in one plane only needs no additional memory.

    Args:
        image_size: side S of the network's square input, in pixels; slices are fitted to it, and logits are resized
            back.
        batch_size: slices a batch.
        plane: of the bundle, as :class:`~medsaga.transforms.OrientSlicesd` has it; only ``all`` changes anything. With
            ``auto`` a network whose weights have learnt from all planes (``trained_plane``) is run on all.
    """

    def __init__(self, image_size: int, batch_size: int = 8, plane: str | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.image_size = image_size
        self.batch_size = batch_size
        self.plane = plane

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
        images = convert_to_tensor(inputs, track_meta=False)

        def logits_of(batch: torch.Tensor) -> torch.Tensor:
            logits = network(fit_square(batch.float(), self.image_size), *args, **kwargs)
            return undo_fit_square(logits, self.image_size, tuple(batch.shape[-2:]))

        if images.ndim == 4:
            labels = self._classes(images, logits_of)
        elif ALL_PLANES in (self.plane, self.plane == "auto" and getattr(network, "trained_plane", None)):
            labels = torch.stack(
                [self._volume(volume, _affine(inputs, i), logits_of) for i, volume in enumerate(images)]
            )
        else:
            # (B, C, H, W, D) → (B·D, C, H, W): for B = 1 a view of the volume, no copy until a batch is cut from it
            labels = self._classes(images.permute(0, 4, 1, 2, 3).flatten(0, 1), logits_of)
            labels = labels.unflatten(0, (len(images), images.shape[-1])).permute(0, 2, 3, 1)
        # the image's affine goes with its label map
        return convert_to_dst_type(labels.unsqueeze(1), inputs, dtype=torch.uint8)[0]

    def _volume(
        self, volume: torch.Tensor, affine: torch.Tensor | None, logits_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Class numbers (H, W, D) of one volume (C, H, W, D)."""
        found = cuts(tuple(volume.shape[1:]), affine)
        if len(found) == 1:
            return self._classes(volume.permute(3, 0, 1, 2), logits_of).permute(1, 2, 0)
        total: torch.Tensor | None = None
        for cut in found:
            slices = cut.turned(volume).permute(3, 0, 1, 2)
            for start in range(0, len(slices), self.batch_size):
                part = logits_of(slices[start : start + self.batch_size]).softmax(dim=1)  # (b, k, h, w)
                if total is None:
                    total = torch.zeros((part.shape[1], *volume.shape[1:]), dtype=torch.float16, device=part.device)
                cut.add(total, part.permute(1, 2, 3, 0), start)
        return total.argmax(dim=0).to(torch.uint8)

    def _classes(self, slices: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Class numbers (D, H, W) of slices (D, C, H, W), which are cut from a volume a batch at a time."""
        labels = torch.empty((len(slices), *slices.shape[-2:]), dtype=torch.uint8, device=slices.device)
        for start in range(0, len(slices), self.batch_size):
            logits = logits_of(slices[start : start + self.batch_size])
            labels[start : start + self.batch_size] = logits.argmax(dim=1).to(torch.uint8)
        return labels


def _affine(inputs: torch.Tensor, item: int) -> torch.Tensor | None:
    """Affine of one volume of a batch, from voxels to RAS; None where it has none."""
    affine = getattr(inputs, "affine", None)
    if affine is None:
        return None
    return affine[item] if affine.ndim == 3 else affine
