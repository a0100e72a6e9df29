"""Logits and the label map that they are compared with: at one resolution, and only where there is a label."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["labelled_pixels", "to_logits_resolution"]


def labelled_pixels(logits: torch.Tensor, target: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out the pixels that are not labelled.

    For a loss that takes means over pixels, or Dice over a batch as a whole, it is as if they were not there. (Some of
    MONAI's losses have ``ignore_index``, but its sums of two losses do not.)

    Args:
        logits: of the network.
        target: class numbers, or ``ignore_index``.
        ignore_index: number of such pixels.

    Returns:
        Both as they are if all pixels are labelled, else the labelled pixels in a row.

    Shape:
        - logits: (B, k, h, w); target: (B, 1, h, w)
        - output: the same, or (1, k, n, 1) and (1, 1, n, 1)
    """
    kept = target[:, 0] != ignore_index
    if kept.all():
        return logits, target
    return logits.movedim(1, -1)[kept].T[None, :, :, None], target[:, 0][kept].view(1, 1, -1, 1)


def to_logits_resolution(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Take a label map to the logits' resolution by nearest neighbour: ``D`` of MedSAGa's eq. 4.

    Args:
        target: class numbers.
        logits: what they are compared with.

    Returns:
        class numbers; the label map itself where the resolutions are the same.

    Shape:
        - target: (B, 1, H, W); logits: (B, k, h, w)
        - output: (B, 1, h, w)

    Source:
        MedSAGa (arXiv 2407.15042), eq. 4.
    """
    if target.shape[-2:] == logits.shape[-2:]:
        return target
    return F.interpolate(target.float(), size=logits.shape[-2:], mode="nearest-exact")
