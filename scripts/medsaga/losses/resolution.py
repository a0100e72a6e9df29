"""Label maps at the resolution of a network's logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["to_logits_resolution"]


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
