"""Adam's moments at rest: in float32, or in 8 bits by torchao's block-wise quantisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["MOMENTS", "STATE_BITS", "new_moments", "read_moments", "state_dtype", "write_moments"]

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE_BITS = (32, 8)
# torchao's own choices: one scale for 256 values, and small tensors stay as they are
_BLOCK = 256
_SMALLEST = 4096


def state_dtype(param: Tensor) -> torch.dtype:
    """The type that moments and bases of a parameter are computed in."""
    # in bfloat16 (8 bits of mantissa) a second moment with beta2 = 0.999 would never decay
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def new_moments(shape: tuple[int, ...], param: Tensor, bits: int) -> dict[str, Tensor]:
    """Both moments of a parameter, zero.

    Args:
        shape: of the parameter, or of its projection.
        param: gives device and type.
        bits: 32, or 8 for a byte an element and a float32 scale for 256 of them (Dettmers et al., arXiv 2110.02861).
            Tensors of fewer than 4096 elements, of a number that 256 does not divide, or in float64 keep full width.

    Returns:
        ``{"exp_avg": ..., "exp_avg_sq": ...}``.
    """
    dtype = state_dtype(param)
    count = torch.Size(shape).numel()
    if bits == 32 or count < _SMALLEST or count % _BLOCK or dtype == torch.float64:
        return {name: torch.zeros(shape, dtype=dtype, device=param.device) for name in MOMENTS}
    from torchao.optim.subclass_8bit import OptimState8bit  # seconds to import, so only where it is used

    return {
        "exp_avg": OptimState8bit.zeros(shape, signed=True, block_size=_BLOCK, device=param.device, dtype=dtype),
        "exp_avg_sq": OptimState8bit.zeros(shape, signed=False, block_size=_BLOCK, device=param.device, dtype=dtype),
    }


def read_moments(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Both moments to compute with: the state's own tensors, or what their 8 bits stand for."""
    first, second = (state[name] for name in MOMENTS)
    if not is_8bit(first):
        return first, second
    # A second moment too small for its block's scale is stored as 0, and the first, its root, is not: their quotient
    # would be a step of thousands of learning rates. The smallest positive code, the one after 0, stands for 0 instead.
    floor = (second.qmap[1] * second.scale).view(-1, 1)
    variance = torch.maximum(second.dequantize().view(-1, _BLOCK), floor)
    return first.dequantize(), variance.view(second.shape)


def write_moments(state: dict[str, Any], exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    """Store what was computed from :func:`read_moments`, or moments of another width."""
    for name, value in zip(MOMENTS, (exp_avg, exp_avg_sq)):
        if state[name] is not value:
            state[name].copy_(value)


def is_8bit(moment: Tensor) -> bool:
    """Whether a moment is stored in 8 bits."""
    return hasattr(moment, "codes")
