"""What the optimizer keeps of a parameter, and whether it fits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .distributed import is_sharded
from .moments import STATE_BITS, copy_moments, moment_shapes, new_moments, read_moments, state_dtype, write_moments
from .projection import (
    PROJECTIONS,
    Basis,
    find_basis,
    has_exact_basis,
    projected_shape,
    projected_sides,
    rotate_moments,
    sketch_basis,
)

__all__ = [
    "as_matrix",
    "basis_of",
    "change_basis",
    "check_group",
    "check_state",
    "matrix_shape",
    "new_basis",
    "new_state",
    "refresh_is_due",
    "restored",
    "seed_of",
]

# counters, kept on the CPU so that reading them never waits for a GPU
_COUNTERS = ("step", "basis_step")
_SIDES = Basis._fields
# "basis_step" of a basis that is only a sketch
_SKETCHED = -1


def matrix_shape(param: Tensor) -> tuple[int, int]:
    return param.shape[0], param.numel() // param.shape[0]


def as_matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)  # also where a process has no row of it


def new_state(shape: tuple[int, ...], param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    return {"step": _counter(0), **_moments(shape, param, group)}


def _moments(shape: tuple[int, ...], param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    if group["rank"] is None and is_sharded(param):  # divided like the parameter, and never in 8 bits
        return {name: torch.zeros_like(param, dtype=state_dtype(param)) for name in moment_shapes(shape, {})}
    return new_moments(shape, param, group["state_bits"])


def _counter(value: int) -> Tensor:
    # a tensor, as torch's own functional AdamW wants its step
    return torch.tensor(float(value), dtype=torch.float32, device="cpu")


def seed_of(group: dict[str, Any], index: int, state: dict[str, Any]) -> int:
    # different for every parameter and step, and always within the 64 bits a generator takes
    step = int(state["step"].item()) if state else 0
    return ((group["seed"] * 1_000_003 + index) * 1_000_003 + step) % 2**63


def basis_of(state: dict[str, Any]) -> Basis | None:
    return Basis(*(state.get(side) for side in _SIDES)) if "basis_step" in state else None


def restored(state: dict[str, Any], param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """A copy of a saved state on the parameter's device; moments of the other width are converted."""
    own = {key: state[key].to("cpu", copy=True) for key in _COUNTERS if key in state}
    own.update({key: state[key].to(param.device, state_dtype(param), copy=True) for key in _SIDES if key in state})
    own.update(_moments(tuple(state["exp_avg"].shape), param, group))
    copy_moments(own, state)
    return own


def refresh_is_due(state: dict[str, Any], group: dict[str, Any], index: int) -> bool:
    if "basis_step" not in state:
        return True
    step, last = int(state["step"].item()), int(state["basis_step"].item())
    gap = group["update_gap"]
    if last == _SKETCHED:
        return step > index % gap  # one parameter after the other
    # counted in whole gaps, not by step % gap == 0, so that a refresh that was put off stays due; shifted by the
    # index, so that the cost of many refreshes is spread over the gap
    return (step + index) // gap > (last + index) // gap


def new_basis(gradient: Tensor, state: dict[str, Any], group: dict[str, Any], index: int) -> Basis | None:
    seed = seed_of(group, index, state)
    old = basis_of(state)
    if old is None and not has_exact_basis((gradient.shape[0], gradient.shape[1]), group["rank"]):
        return sketch_basis(gradient, group["rank"], group["projection"], seed)
    return find_basis(gradient, group["rank"], group["projection"], seed, old)


def change_basis(state: dict[str, Any], basis: Basis, param: Tensor, group: dict[str, Any]) -> None:
    """Take up a new basis, and carry the moments over."""
    old, step = basis_of(state), int(state["step"].item())
    if group["rotate_moments"] and old is not None:
        moments = read_moments(state)
        rotate_moments(*moments, old, basis, group["betas"], step)
        write_moments(state, *moments)
    state.update({side: vectors for side, vectors in zip(_SIDES, basis) if vectors is not None})
    is_sketch = old is None and not has_exact_basis(matrix_shape(param), group["rank"])
    state["basis_step"] = _counter(_SKETCHED if is_sketch else step)


def check_group(group: dict[str, Any]) -> None:
    if not 0 <= group["lr"] < math.inf:
        raise ValueError(f"lr must be a number from 0 on, got {group['lr']}.")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}.")
    for key in ("eps", "weight_decay"):
        if not 0 <= group[key] < math.inf:
            raise ValueError(f"{key} must be a number from 0 on, got {group[key]}.")
    if group["state_bits"] not in STATE_BITS:
        raise ValueError(f"state_bits must be one of {STATE_BITS}, got {group['state_bits']!r}.")
    if not group["update_gap"] >= 1:
        raise ValueError(f"update_gap must be at least 1, got {group['update_gap']}.")
    if group["projection"] not in PROJECTIONS:
        raise ValueError(f"projection must be one of {PROJECTIONS}, got {group['projection']!r}.")
    for param in group["params"]:
        if not param.is_floating_point():
            raise ValueError(f"GaLoreAdamW updates real floating-point parameters only, got one of {param.dtype}.")
    rank = group["rank"]
    if rank is None:
        return
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number from 1 on, or None for plain AdamW, got {rank!r}.")
    for param in group["params"]:
        shape = tuple(param.shape)
        if param.ndim < 2:
            raise ValueError(
                f"a parameter of shape {shape} cannot be projected to rank {rank}: it has fewer than two dimensions. "
                f"Put it into a group with rank=None."
            )
        if rank > min(matrix_shape(param)):
            raise ValueError(
                f"rank {rank} is larger than a parameter of shape {shape} allows: as a matrix of shape "
                f"{matrix_shape(param)} it has at most rank {min(matrix_shape(param))}. Lower the rank, or put the "
                f"parameter into a group with rank=None."
            )


def check_state(param: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Raise ValueError unless the state is empty or is one this optimizer makes for this parameter and group."""
    if not state:
        return
    rank, projection = group["rank"], group["projection"]
    expected: dict[str, tuple[int, ...]] = {"step": ()}
    if rank is None:
        expected.update(moment_shapes(tuple(param.shape), state))
    else:
        shape = matrix_shape(param)
        expected.update(moment_shapes(projected_shape(shape, rank, projection), state))
        if any(side in state for side in _SIDES):  # else no usable gradient has come yet
            expected["basis_step"] = ()
            for side, size, projected in zip(_SIDES, shape, projected_sides(shape, projection)):
                if projected:
                    expected[side] = (size, rank)
    found = {key: tuple(value.shape) if isinstance(value, Tensor) else type(value) for key, value in state.items()}
    if found != expected:
        raise ValueError(
            f"the optimizer state of a parameter of shape {tuple(param.shape)} does not fit rank={rank}, "
            f"projection={projection!r}: it holds {found}, expected {expected}. Use the rank and projection the state "
            f"was made with, or start with a new optimizer."
        )
