"""AdamW whose state for chosen matrices lives in a low-rank space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from .projection import (
    PROJECTIONS,
    Basis,
    find_basis,
    project,
    project_back,
    projected_shape,
    projected_sides,
    rotate_moments,
)

__all__ = ["GaLoreAdamW"]

# of a group: the user's choice for this run, which a checkpoint must not overrule
_SETTINGS = ("rank", "update_gap", "scale", "projection", "rotate_moments", "seed")
# of a parameter's state: counters, kept on the CPU so that reading them never waits for a GPU
_COUNTERS = ("step", "basis_step")
_SIDES = Basis._fields


class GaLoreAdamW(Optimizer):
    r"""AdamW with gradient low-rank projection (GaLore) for the parameter groups that give a ``rank``.

    A group without ``rank`` is updated as by :class:`torch.optim.AdamW`. In a group with ``rank`` each gradient
    :math:`G` of shape :math:`m \times n` is projected, AdamW's rule :math:`\rho` is kept in the low-rank space, and its
    result is projected back (MedSAGa, eq. 1 and 2):

    .. math:: W \leftarrow (1 - \eta\lambda) W - \eta \alpha P \rho(P^T G Q) Q^T

    * ``"one-sided"`` (GaLore's default) projects the shorter side only: the two moments take ``r * max(m, n)`` each and
      the basis ``r * min(m, n)``.
    * ``"two-sided"`` is eq. 1 as written: the moments take ``r * r`` each and the bases ``r * (m + n)``. In a
      parameter's very first step :math:`P^T G Q` is diagonal, and AdamW makes full steps of the rounding errors beside
      the diagonal: begin with a warmup.

    A tensor with more than two dimensions, such as a convolution's weight, is treated as the matrix ``(out, -1)``.

    The basis is the top singular vectors of the current gradient, found anew every ``update_gap`` steps. Refreshes of
    different parameters fall on different steps. A gradient that is all zero or not finite says nothing about the
    basis: the refresh is then put off to the next step with a usable gradient and the old basis stays. While there is
    no basis yet, such a gradient only brings the weight decay. Once there is one, a non-finite gradient reaches the
    moments and the parameter as it does in :class:`torch.optim.AdamW`, but never the basis; a ``GradScaler`` keeps it
    out altogether.

    Parameters in half precision get moments and bases in float32, and are rounded once a step.

    The state holds only tensors (``step``, ``exp_avg``, ``exp_avg_sq``, and with ``rank`` also ``basis_step`` and
    ``left``, ``right`` or both), so ``torch.load(..., weights_only=True)`` reads it and a resumed run continues bit
    for bit. On resume ``lr``, ``betas``, ``eps`` and ``weight_decay`` come from the checkpoint, as in every torch
    optimizer; the settings of the projection are those this optimizer was made with. They may also be changed later,
    in ``param_groups``, except for ``rank`` and ``projection``, which the state has to fit.

    Args:
        params: parameters, or dicts of parameter groups, in which each of the following options may be set.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the denominator, as in :class:`torch.optim.AdamW`.
        weight_decay: decoupled weight decay, applied before the update, in the full space.
        rank: rank of the projection, at most ``min(m, n)``; ``None`` for plain AdamW.
        update_gap: steps between two refreshes of a basis, T in the papers.
        scale: factor on the projected update, alpha in GaLore. MedSAGa has none.
        projection: ``"one-sided"`` or ``"two-sided"``.
        rotate_moments: whether to carry the moments over into a new basis (LDAdam). GaLore itself does not: it goes on
            with moments whose rows now mean other directions.
        seed: of the randomised search for the basis; torch's global generator is left alone.

    Raises:
        ValueError: when an option is out of its range, or a parameter in a group with ``rank`` has fewer than two
            dimensions or is smaller than the rank.

    Example:
        >>> matrices = [p for p in encoder.parameters() if p.ndim >= 2]
        >>> vectors = [p for p in encoder.parameters() if p.ndim < 2]
        >>> optimizer = GaLoreAdamW([{"params": matrices, "rank": 16}, {"params": vectors}], lr=1e-3)

    Source: GaLore (arXiv 2403.03507), MedSAGa (arXiv 2407.15042), LDAdam (arXiv 2410.16103).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int | None = None,
        update_gap: int = 200,
        scale: float = 1.0,
        projection: str = "one-sided",
        rotate_moments: bool = True,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": rank,
            "update_gap": update_gap,
            "scale": scale,
            "projection": projection,
            "rotate_moments": rotate_moments,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group.

        Args:
            param_group: ``{"params": ...}`` and options that differ from the optimizer's.

        Raises:
            ValueError: as the constructor. The optimizer is then left as it was.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: evaluates the model anew and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned, or ``None`` without one.

        Raises:
            RuntimeError: when a gradient is sparse.
            ValueError: when a parameter's state does not fit its group's ``rank`` and ``projection``.
                In both cases nothing has been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_before_step()
        for group in self.param_groups:
            if group["rank"] is None:
                self._update_plain([p for p in group["params"] if p.grad is not None], group)
        for index, (param, group) in enumerate(self._projected()):
            if param.grad is not None:
                # torch.optim has no matrix products, so stepping inside autocast is harmless there; keep it so here
                with torch.autocast(param.device.type, enabled=False):
                    self._update_projected(param, group, index)
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state that :meth:`state_dict` returned.

        ``lr``, ``betas``, ``eps``, ``weight_decay`` and any extra keys of the groups come from ``state_dict``; the
        projection's settings (``rank``, ``update_gap``, ``scale``, ``projection``, ``rotate_moments``, ``seed``) stay
        as this optimizer has them. Tensors are copied, to the parameter's device, and keep float32 where the parameter
        is in half precision.

        Args:
            state_dict: the state, of this class or of :class:`torch.optim.AdamW` for groups without ``rank``.

        Raises:
            ValueError: when the state does not fit this optimizer's groups, ``rank`` or ``projection``. The optimizer
                is then left as it was.
        """
        settings = [{key: group[key] for key in _SETTINGS} for group in self.param_groups]
        loaded: dict[str, Any] = {}

        def inspect(_: Optimizer, final: StateDict) -> None:
            for param, group, state in self._match(final):
                _check_state(param, group, state)
            loaded.update(final)

        # a hook, and the last one, so that it sees the state as other hooks leave it
        handle = self.register_load_state_dict_pre_hook(inspect)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group, own in zip(self.param_groups, settings):
            group.update(own)
        # torch has just cast the state to the parameter's dtype, which would round float32 moments to bfloat16
        for param, _, state in self._match(loaded):
            for key, value in state.items():
                if key in _COUNTERS:
                    self.state[param][key] = value.to("cpu", copy=True)
                else:
                    self.state[param][key] = value.to(param.device, _state_dtype(param), copy=True)

    def _match(self, state_dict: StateDict) -> Iterator[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Pairs every parameter (and its group here) with its state in a state dict."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            for param, key in zip(group["params"], saved["params"]):
                yield param, group, state_dict["state"].get(key, {})

    def _projected(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Parameters with a rank; their order numbers the random starts and spreads the refreshes."""
        for group in self.param_groups:
            if group["rank"] is not None:
                for param in group["params"]:
                    yield param, group

    def _check_before_step(self) -> None:
        for group in self.param_groups:
            _check_group(group)  # again, as its settings may have been changed
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError(
                        f"GaLoreAdamW does not support sparse gradients, but the gradient of a parameter of shape "
                        f"{tuple(param.shape)} is one. Use sparse=False in its nn.Embedding, or torch.optim.SparseAdam."
                    )
                if param in self.state:
                    _check_state(param, group, self.state[param])

    def _update_plain(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """AdamW in the full space."""
        for param in params:
            if not self.state[param]:
                self.state[param] = _new_state(torch.zeros_like(param, dtype=_state_dtype(param)))
        own_dtype = [p for p in params if p.dtype == _state_dtype(p)]
        if own_dtype:
            _adamw(own_dtype, [p.grad for p in own_dtype], [self.state[p] for p in own_dtype], group)
        for param in params:
            if param.dtype != _state_dtype(param):
                _apply(param, _adam_update(param.grad.to(_state_dtype(param)), self.state[param], group), group)

    def _update_projected(self, param: Tensor, group: dict[str, Any], index: int) -> None:
        """AdamW in the low-rank space (MedSAGa, eq. 1), for the ``index``-th projected parameter."""
        gradient = _as_matrix(param.grad).to(_state_dtype(param))
        state = self.state[param]
        if not state:
            low_rank_shape = projected_shape(_matrix_shape(param), group["rank"], group["projection"])
            state.update(_new_state(gradient.new_zeros(low_rank_shape)))
        _refresh_basis(gradient, state, group, index)
        if "basis_step" not in state:
            state["step"] += 1  # a zero gradient counts as a step in AdamW as well
            _apply(param, None, group)
            return
        basis = _basis(state)
        update = _adam_update(project(gradient, basis), state, group)
        _apply(param, project_back(update, basis), group, group["scale"])


def _state_dtype(param: Tensor) -> torch.dtype:
    # in bfloat16 (8 bits of mantissa) a second moment with beta2 = 0.999 would never decay
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _matrix_shape(param: Tensor) -> tuple[int, int]:
    return param.shape[0], param.numel() // param.shape[0]


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(_matrix_shape(tensor))


def _new_state(zeros: Tensor) -> dict[str, Tensor]:
    return {"step": _counter(0), "exp_avg": zeros, "exp_avg_sq": torch.zeros_like(zeros)}


def _counter(value: int) -> Tensor:
    # a tensor, as torch's own functional AdamW wants its step
    return torch.tensor(float(value), dtype=torch.float32, device="cpu")


def _basis(state: dict[str, Tensor]) -> Basis:
    return Basis(*(state.get(side) for side in _SIDES))


def _refresh_basis(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], index: int) -> None:
    """Find the basis anew when that is due and the gradient allows it, and carry the moments over."""
    step = int(state["step"].item())
    gap = group["update_gap"]
    if "basis_step" in state:
        # counted in whole gaps, not by step % gap == 0, so that a refresh that was put off stays due; shifted by the
        # index, so that the cost of many refreshes is spread over the gap
        last = int(state["basis_step"].item())
        if (step + index) // gap <= (last + index) // gap:
            return
    # apart for every parameter and step, and always within the 64 bits a generator takes
    seed = ((group["seed"] * 1_000_003 + index) * 1_000_003 + step) % 2**63
    basis = find_basis(gradient, group["rank"], group["projection"], seed)
    if basis is None:
        return
    if group["rotate_moments"] and "basis_step" in state:
        rotate_moments(state["exp_avg"], state["exp_avg_sq"], _basis(state), basis, group["betas"], step)
    state.update({side: vectors for side, vectors in zip(_SIDES, basis) if vectors is not None})
    state["basis_step"] = _counter(step)


def _adamw(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    group: dict[str, Any],
    weight_decay: float | None = None,
) -> None:
    adamw(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"] if weight_decay is None else weight_decay,
        eps=group["eps"],
        maximize=False,
    )


def _adam_update(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """What AdamW without weight decay would add to a parameter with this gradient, learning rate included."""
    update = torch.zeros_like(gradient)
    _adamw([update], [gradient], [state], group, weight_decay=0.0)
    return update


def _apply(param: Tensor, update: Tensor | None, group: dict[str, Any], scale: float = 1.0) -> None:
    """Weight decay, then the update. Half precision is rounded once, or a small decay would round away."""
    value = param.to(_state_dtype(param))
    value.mul_(1 - group["lr"] * group["weight_decay"])
    if update is not None:
        value.add_(update.reshape(param.shape), alpha=scale)
    if value is not param:
        param.copy_(value)


def _check_group(group: dict[str, Any]) -> None:
    if group["lr"] < 0:
        raise ValueError(f"lr must not be negative, got {group['lr']}.")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}.")
    for key in ("eps", "weight_decay"):
        if group[key] < 0:
            raise ValueError(f"{key} must not be negative, got {group[key]}.")
    if group["update_gap"] < 1:
        raise ValueError(f"update_gap must be at least 1, got {group['update_gap']}.")
    if group["projection"] not in PROJECTIONS:
        raise ValueError(f"projection must be one of {PROJECTIONS}, got {group['projection']!r}.")
    for param in group["params"]:
        if not param.is_floating_point():
            raise ValueError(f"GaLoreAdamW updates real floating-point parameters only, got one of {param.dtype}.")
    rank = group["rank"]
    if rank is None:
        return
    if rank < 1:
        raise ValueError(f"rank must be at least 1, or None for plain AdamW, got {rank}.")
    for param in group["params"]:
        shape = tuple(param.shape)
        if param.ndim < 2:
            raise ValueError(
                f"a parameter of shape {shape} cannot be projected to rank {rank}: it has fewer than two dimensions. "
                f"Put it into a group with rank=None."
            )
        if rank > min(_matrix_shape(param)):
            raise ValueError(
                f"rank {rank} is larger than a parameter of shape {shape} allows: as a matrix of shape "
                f"{_matrix_shape(param)} it has at most rank {min(_matrix_shape(param))}. Lower the rank, or put the "
                f"parameter into a group with rank=None."
            )


def _check_state(param: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Raise ValueError unless the state is empty or is one this optimizer makes for this parameter and group."""
    if not state:
        return
    rank, projection = group["rank"], group["projection"]
    expected: dict[str, tuple[int, ...]] = {"step": ()}
    if rank is None:
        expected["exp_avg"] = expected["exp_avg_sq"] = tuple(param.shape)
    else:
        shape = _matrix_shape(param)
        expected["exp_avg"] = expected["exp_avg_sq"] = projected_shape(shape, rank, projection)
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
