"""MedSAGa's loss: cross entropy and Dice at the resolution of the network's logits."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceCELoss

from .resolution import labelled_pixels, to_logits_resolution

__all__ = ["LogitResolutionDiceCELoss"]


class LogitResolutionDiceCELoss(DiceCELoss):
    """``L = λ·CE(M, D(S)) + (1 − λ)·Dice(M, D(S))``, λ = 0.2 (MedSAGa, arXiv 2407.15042, eq. 4).

    ``D`` takes the label map down to the logits' resolution by nearest neighbour. As in SAMed, whose loss this is, the
    Dice term is computed over the batch as a whole, with squared terms in the denominator, background included.

    Args:
        lambda_ce: λ, weight of the cross entropy; the Dice term weighs 1 − λ.
        ignore_index: number of pixels that are not labelled; they do not count.
        kwargs: further arguments of MONAI's ``DiceCELoss``.
    """

    def __init__(self, lambda_ce: float = 0.2, ignore_index: int = 255, **kwargs: Any) -> None:
        options: dict[str, Any] = {"softmax": True, "to_onehot_y": True, "squared_pred": True, "batch": True}
        super().__init__(lambda_ce=lambda_ce, lambda_dice=1.0 - lambda_ce, **{**options, **kwargs})
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
