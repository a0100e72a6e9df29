"""Stochastic rounding of float32 to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["round_stochastically"]


def round_stochastically(value: Tensor, seed: int) -> Tensor:
    """Round to bfloat16, up or down with the probability that keeps the expectation.

    Rounding to nearest loses every update below 1/256 of the weight, which is nearly all of them when fine-tuning. With
    stochastic rounding the updates take effect on average. (torchao rounds alike, but draws from the global generator,
    which need not agree between the processes of one training.)

    Args:
        value: any shape, float32.
        seed: the same seed rounds the same value alike, on the same kind of device.

    Returns:
        The value in bfloat16. Values that are not finite stay unchanged.

    Source: Zamirai et al., "Revisiting BFloat16 Training" (arXiv 2010.06192).
    """
    generator = torch.Generator(value.device).manual_seed(seed)
    # bfloat16 is the upper half of a float32: adding a random lower half carries with the right probability
    noise = torch.randint(0, 1 << 16, value.shape, generator=generator, device=value.device, dtype=torch.int32)
    bits = noise.add_(value.contiguous().view(torch.int32)).bitwise_and_(-65536)
    rounded = bits.view(torch.float32)
    return torch.where(value.isfinite(), rounded, value).to(torch.bfloat16)
