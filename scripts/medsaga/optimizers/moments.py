"""Storage of Adam's moments: in float32, or in 8 bits by torchao's block-wise quantisation."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

__all__ = [
    "STATE_BITS",
    "copy_moments",
    "is_8bit",
    "moment_shapes",
    "new_moments",
    "read_moments",
    "state_dtype",
    "write_moments",
]

STATE_BITS = (32, 8)
_MOMENTS = ("exp_avg", "exp_avg_sq")
# quantisation needs more memory than its result, so it is done piece by piece
_PIECE = 1 << 20
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
        bits: 32, or 8 for one byte per element and one float32 scale per 256 elements (Dettmers et al., arXiv
            2110.02861). Tensors keep full width if they have fewer than 4096 elements, a number of elements that 256
            does not divide, or type float64.

    Returns:
        ``exp_avg`` and ``exp_avg_sq``; with 8 bits these are codes, and ``exp_avg_scale`` and ``exp_avg_sq_scale`` are
        their scale factors.
    """
    dtype = state_dtype(param)
    count = torch.Size(shape).numel()
    if bits == 32 or count < _SMALLEST or count % _BLOCK or dtype == torch.float64:
        return {name: torch.zeros(shape, dtype=dtype, device=param.device) for name in _MOMENTS}
    codes = {name: torch.zeros(shape, dtype=torch.uint8, device=param.device) for name in _MOMENTS}
    return codes | {f"{name}_scale": torch.zeros(count // _BLOCK, device=param.device) for name in _MOMENTS}


def moment_shapes(shape: tuple[int, ...], state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes that the entries of a state should have for moments of this shape, in the state's own width."""
    scales = {f"{name}_scale": (torch.Size(shape).numel() // _BLOCK,) for name in _MOMENTS} if is_8bit(state) else {}
    return dict.fromkeys(_MOMENTS, shape) | scales


def is_8bit(state: dict[str, Any]) -> bool:
    """Whether a state's moments are stored in 8 bits."""
    return getattr(state.get("exp_avg"), "dtype", None) == torch.uint8


def read_moments(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Both moments to compute with: the state's own tensors, or the values of their 8-bit codes."""
    if not is_8bit(state):
        return state["exp_avg"], state["exp_avg_sq"]
    qmaps = _qmaps(state["exp_avg"].device)
    first, second = (
        qmap[state[name].int()].view(-1, _BLOCK) * state[f"{name}_scale"].view(-1, 1)
        for name, qmap in zip(_MOMENTS, qmaps)
    )
    # A second moment that is too small for its block's scale is stored as 0, but the first moment, of the size of its
    # root, is not: their quotient would be a step of thousands of learning rates. So 0 is read as the value of the
    # smallest positive code, the one after 0.
    smallest = qmaps[1][1] * state["exp_avg_sq_scale"].view(-1, 1)
    shape = state["exp_avg"].shape
    return first.view(shape), torch.maximum(second, smallest).view(shape)


def write_moments(state: dict[str, Any], exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    """Store what was computed from :func:`read_moments`, or moments of another width."""
    if not is_8bit(state):
        for name, value in zip(_MOMENTS, (exp_avg, exp_avg_sq)):
            if state[name] is not value:
                state[name].copy_(value)
        return
    from torchao.optim.quant_utils import quantize_8bit_with_qmap, scale_tensor  # slow to import, and seldom used

    for name, value, qmap in zip(_MOMENTS, (exp_avg, exp_avg_sq), _qmaps(exp_avg.device)):
        codes, scales = state[name].view(-1).split(_PIECE), state[f"{name}_scale"].split(_PIECE // _BLOCK)
        for piece, code, scale in zip(value.reshape(-1).split(_PIECE), codes, scales):
            scaled, largest = scale_tensor(piece, _BLOCK)
            code.copy_(quantize_8bit_with_qmap(scaled, qmap))
            scale.copy_(largest)


def copy_moments(state: dict[str, Any], source: dict[str, Any]) -> None:
    """Copy moments from a state of either width; bit for bit if the width is the same."""
    if is_8bit(state) != is_8bit(source):
        write_moments(state, *(value.to(state["exp_avg"].device) for value in read_moments(source)))
        return
    for name in moment_shapes((), state):
        state[name].copy_(source[name])


def _qmaps(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the 256 codes of the first and of the second moment stand for."""
    first, second = _qmap_values()
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


@cache
def _qmap_values() -> tuple[list[float], list[float]]:
    from torchao.optim.quant_utils import create_dynamic_map

    with no_dispatch():  # the result is cached, so it must not be made of fake tensors
        return create_dynamic_map(signed=True), create_dynamic_map(signed=False)
