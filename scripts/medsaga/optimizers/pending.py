"""Gradients between backward and step, in the low-rank space."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .distributed import average, is_sharded, several_processes, share_basis, whole
from .moments import state_dtype
from .projection import Basis, project
from .state import as_matrix, basis_of, new_basis, refresh_is_due

__all__ = ["Pending", "call_after_backward", "with_gradient"]


class Pending(NamedTuple):
    """A gradient on its way to the update.

    Args:
        low_rank: the gradient in the low-rank space, summed over backward passes; None while there is no basis.
        basis: what it was projected on.
        is_new: whether the basis is not yet the state's.
    """

    low_rank: Tensor | None
    basis: Basis | None
    is_new: bool


def with_gradient(
    pending: Pending | None, param: Tensor, state: dict[str, Any], group: dict[str, Any], index: int, averaged: bool
) -> Pending:
    """Project a parameter's gradient, on a new basis where one is due, and add it to what is pending.

    Args:
        pending: of earlier backward passes since the last step.
        param: with its gradient.
        state: of the parameter, empty before its first step.
        group: of the parameter.
        index: of the parameter among the projected ones.
        averaged: average projections over the processes here, because nothing else does.
    """
    averaged = averaged and several_processes() and not is_sharded(param)
    gradient = as_matrix(whole(param.grad)).to(state_dtype(param))
    if pending is None or pending.basis is None:
        pending = Pending(None, basis_of(state), False)
        if refresh_is_due(state, group, index):
            # only projections are averaged, so not yet this one
            if averaged:
                average(gradient)
            new = new_basis(gradient, state, group, index)
            if new is not None:
                pending = Pending(None, share_basis(new) if several_processes() else new, True)
    if pending.basis is None:
        return pending
    low_rank = project(gradient, pending.basis)
    if averaged:
        average(low_rank)
    if pending.low_rank is not None:
        low_rank += pending.low_rank
    return pending._replace(low_rank=low_rank)


def call_after_backward(param: Tensor, method: Callable[[Tensor], None]) -> None:
    """Call a method with a parameter whenever backward has computed its gradient, as long as the method's object lives.

    Args:
        param: a leaf.
        method: a bound method; only a weak reference is kept, or the network would keep alive every optimizer that ever
            trained it.
    """
    weak = weakref.WeakMethod(method)

    @torch.no_grad()
    def call(param: Tensor) -> None:
        method = weak()
        if method is None:
            handle.remove()
        else:
            method(param)

    handle = param.register_post_accumulate_grad_hook(call)
