"""Dice and focal loss at the resolution of the network's logits."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceFocalLoss

from .resolution import labelled_pixels, to_logits_resolution

__all__ = ["LogitResolutionDiceFocalLoss"]


class LogitResolutionDiceFocalLoss(DiceFocalLoss):
    """Sum of the Dice loss and the focal loss, both against the label map at the logits' resolution.

    The Dice term is that of :class:`~medsaga.losses.LogitResolutionDiceCELoss`: of the softmax, over the batch as a
    whole, with squared terms in the denominator, background included. The focal term is MONAI's: each class against all
    others by a sigmoid, ``−(1 − p)^γ log p`` of the right answer's p, mean over pixels and classes, γ = 2.

    Args:
        ignore_index: number of pixels that are not labelled; they do not count.
        kwargs: arguments of MONAI's ``DiceFocalLoss``, where they are to differ.

    Source:
        The loss of LoRA on LiteMedSAM in the CVPR 2024 "MedSAM on Laptop" challenge; focal loss: arXiv 1708.02002,
        eq. 4.
    """

    def __init__(self, ignore_index: int = 255, **kwargs: Any) -> None:
        options: dict[str, Any] = {"softmax": True, "to_onehot_y": True, "squared_pred": True, "batch": True}
        super().__init__(**{**options, **kwargs})
        self.ignore_index = ignore_index

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits (B, k, h, w).
            target: class numbers (B, 1, H, W), or ``ignore_index``.
        """
        # under autocast the logits are in half precision, which is too coarse for sums over a batch of pixels
        logits, target = labelled_pixels(input.float(), to_logits_resolution(target, input), self.ignore_index)
        return super().forward(logits, target) if target.numel() else 0 * input.sum()
