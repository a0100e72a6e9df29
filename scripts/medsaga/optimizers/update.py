"""AdamW's update, in the full and in the low-rank space."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .distributed import local, own_rows
from .moments import is_8bit, read_moments, state_dtype, write_moments
from .pending import Pending
from .projection import Basis, project_back, projected_shape
from .rounding import round_stochastically
from .state import as_matrix, change_basis, matrix_shape, new_state, seed_of

__all__ = ["update_plain", "update_projected"]


def update_plain(params: list[Tensor], states: MutableMapping[Tensor, dict[str, Any]], group: dict[str, Any]) -> None:
    """AdamW in the full space.

    Args:
        params: of the group, with gradients.
        states: by parameter; new ones are made.
        group: of the parameters.
    """
    torchs, others = [], []
    for index, param in enumerate(params):
        if not states[param]:
            states[param] = new_state(tuple(param.shape), param, group)
        if param.dtype == state_dtype(param) and not is_8bit(states[param]):
            torchs.append(param)
        else:
            others.append((index, param))
    if torchs:
        moments = [read_moments(states[p]) for p in torchs]
        _adamw(torchs, [p.grad for p in torchs], moments, [states[p]["step"] for p in torchs], group)
    for index, param in others:
        update = _adam_update(local(param.grad).to(state_dtype(param)), states[param], group)
        _apply(local(param), update, group, 1.0, seed_of(group, -1 - index, states[param]))


def update_projected(param: Tensor, pending: Pending, state: dict[str, Any], group: dict[str, Any], index: int) -> None:
    """AdamW in the low-rank space (MedSAGa, eq. 1).

    Args:
        param: to update.
        pending: its gradient.
        state: of the parameter; filled where it is empty.
        group: of the parameter.
        index: of the parameter among the projected ones.
    """
    if not state:
        low_rank_shape = projected_shape(matrix_shape(param), group["rank"], group["projection"])
        state.update(new_state(low_rank_shape, param, group))
    if pending.is_new:
        change_basis(state, pending.basis, param, group)
    if pending.low_rank is None:
        state["step"] += 1  # a zero gradient counts as a step in AdamW as well
        _apply(local(param), None, group, 1.0, seed_of(group, index, state))
        return
    update = _adam_update(pending.low_rank, state, group)
    part = local(param)
    if param.dtype == state_dtype(param) and part.is_contiguous():
        _apply_low_rank(param, update, pending.basis, group)
    else:
        update = own_rows(project_back(update, pending.basis).view(param.shape), param)
        _apply(part, update, group, group["scale"], seed_of(group, index, state))


def _adamw(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    steps: list[Tensor],
    group: dict[str, Any],
    weight_decay: float | None = None,
) -> None:
    # "fused" takes a sixth of the time on a CPU; on a GPU it needs the counters there, and torch groups tensors by
    # itself
    on_cpu = all(param.device.type == "cpu" for param in params)
    adamw(
        [local(param) for param in params],
        [local(grad) for grad in grads],
        [local(exp_avg) for exp_avg, _ in moments],
        [local(exp_avg_sq) for _, exp_avg_sq in moments],
        [],
        steps,
        fused=on_cpu or None,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"] if weight_decay is None else weight_decay,
        eps=group["eps"],
        maximize=False,
    )


def _adam_update(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """What AdamW without weight decay would add to a parameter with this gradient, learning rate included."""
    update = torch.zeros_like(gradient)
    moments = read_moments(state)
    _adamw([update], [gradient], [moments], [state["step"]], group, weight_decay=0.0)
    write_moments(state, *moments)
    return update


def _apply(param: Tensor, update: Tensor | None, group: dict[str, Any], scale: float, seed: int) -> None:
    """Apply weight decay, then the update. Half precision is rounded once, or a small decay would be lost."""
    value = param.to(state_dtype(param))
    value.mul_(1 - group["lr"] * group["weight_decay"])
    if update is not None:
        value.add_(update, alpha=scale)
    if value is not param:
        param.copy_(round_stochastically(value, seed) if param.dtype == torch.bfloat16 else value)


def _apply_low_rank(param: Tensor, update: Tensor, basis: Basis, group: dict[str, Any]) -> None:
    """Apply weight decay and a low-rank update in one pass over the matrix, without forming the full update."""
    decay = float(1 - group["lr"] * group["weight_decay"])
    if basis.left is None:
        left, right = update, basis.right.T
    else:
        left, right = basis.left, update if basis.right is None else update @ basis.right.T
    as_matrix(local(param)).addmm_(own_rows(left, param), right, beta=decay, alpha=group["scale"])
