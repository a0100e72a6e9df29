"""AdamW whose state for chosen matrices lives in a low-rank space."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from .distributed import average, several_processes, share_basis
from .moments import (
    STATE_BITS,
    copy_moments,
    is_8bit,
    moment_shapes,
    new_moments,
    read_moments,
    state_dtype,
    write_moments,
)
from .projection import (
    PROJECTIONS,
    Basis,
    find_basis,
    has_exact_basis,
    project,
    project_back,
    projected_shape,
    projected_sides,
    rotate_moments,
    sketch_basis,
)
from .rounding import round_stochastically

__all__ = ["GaLoreAdamW"]

# of a group: the user's choice for this run, which a checkpoint must not overrule
_SETTINGS = ("rank", "update_gap", "scale", "projection", "rotate_moments", "seed", "state_bits")
# of a parameter's state: counters, kept on the CPU so that reading them never waits for a GPU
_COUNTERS = ("step", "basis_step")
_SIDES = Basis._fields
# "basis_step" of a basis that is only a sketch
_SKETCHED = -1


class _Pending(NamedTuple):
    """A gradient on its way to the update.

    Args:
        low_rank: the gradient in the low-rank space, summed over backward passes; None while there is no basis.
        basis: what it was projected on.
        is_new: whether the basis is not yet the state's.
    """

    low_rank: Tensor | None
    basis: Basis | None
    is_new: bool


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
    different parameters fall on different steps; a large matrix begins with a cheap sketch of its basis, so that the
    first step is no longer than others, and gets its singular vectors soon after. A gradient that is all zero or not
    finite says nothing about the basis: the refresh is then put off to the next step with a usable gradient and the old
    basis stays. While there is no basis yet, such a gradient only brings the weight decay. Once there is one, a
    non-finite gradient reaches the moments and the parameter as it does in :class:`torch.optim.AdamW`, but never the
    basis; a ``GradScaler`` keeps it out altogether.

    With ``update_in_backward`` a gradient of a group with ``rank`` is projected as soon as backward has computed it,
    and freed: no more than one of them lives at a time. What is kept until :meth:`step` is its projection. Several
    backward passes before a step add up there (gradient accumulation; a new basis comes from the first of them).
    ``zero_grad`` drops what has been kept. A gradient that is not finite stays in ``.grad``, where a ``GradScaler``
    finds it and skips the step whole; the scaler works through this optimizer's own unscaling. Under
    ``torch.distributed`` the projections are averaged over the processes, and the network is wrapped by
    :func:`~medsaga.optimizers.data_parallel`.

    Parameters in half precision get moments and bases in float32, and are rounded once a step, those in bfloat16
    stochastically.

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
        rotate_moments: whether to carry the moments over into a new basis (LDAdam). GaLore does not: it goes on with
            moments whose rows now mean other directions. Which learns better depends on rank and ``update_gap``
            (figures in ``docs/projection.md``).
        seed: of the randomised search for the basis and of stochastic rounding; torch's global generator is left alone.
        state_bits: 32, or 8 for moments of a byte an element (torchao's block-wise quantisation; small tensors stay
            float32).
        update_in_backward: whether to take projected parameters' gradients inside backward.
        max_norm: bound on the norm of all gradients together, those of projected parameters taken after projection,
            so no second pass over them is needed; larger ones are scaled down (in place, as by
            :func:`torch.nn.utils.clip_grad_norm_`). ``None`` for none.

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
        rotate_moments: bool = False,
        seed: int = 0,
        state_bits: int = 32,
        update_in_backward: bool = False,
        max_norm: float | None = None,
    ) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm must be positive, or None for no bound, got {max_norm}.")
        self.update_in_backward = update_in_backward
        self.max_norm = max_norm
        self._index: dict[Tensor, tuple[dict[str, Any], int]] = {}
        self._pending: dict[Tensor, _Pending] = {}
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
            "state_bits": state_bits,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "update_in_backward": self.update_in_backward,
            "max_norm": self.max_norm,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "update_in_backward" in state:  # from a copy, and not from load_state_dict, which is not done yet
            self._number_parameters()

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
        self._number_parameters()

    @property
    def taken_in_backward(self) -> list[Tensor]:
        """Parameters whose gradients this optimizer takes inside backward, and averages over processes itself."""
        return list(self._index) if self.update_in_backward else []

    def _number_parameters(self) -> None:
        """Number the projected parameters: for their random starts, and to spread the refreshes."""
        self._pending = {}
        known = getattr(self, "_index", {})
        self._index = {}
        for group in self.param_groups:
            if group["rank"] is not None:
                for param in group["params"]:
                    self._index[param] = group, len(self._index)
        # GradScaler leaves the unscaling to an optimizer with this mark
        self._step_supports_amp_scaling = self.update_in_backward
        if self.update_in_backward:
            for param in self._index:
                if param not in known:
                    _take_in_backward(param, self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, those kept since a backward pass included."""
        self._pending.clear()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: evaluates the model anew and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned, or ``None`` without one.

        Raises:
            RuntimeError: when a gradient is sparse, or with ``update_in_backward`` after ``GradScaler.unscale_``.
            ValueError: when a parameter's state does not fit its group's ``rank`` and ``projection``.
                In all cases nothing has been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_before_step()
        if self._loss_scale_overflowed():
            self._pending.clear()
            return loss
        for param in self._index:
            if param.grad is not None:
                # torch.optim has no matrix products, so stepping inside autocast is harmless there; keep it so here
                with torch.autocast(param.device.type, enabled=False):
                    self._project(param)
        self._scale_gradients()
        for group in self.param_groups:
            if group["rank"] is None:
                self._update_plain([p for p in group["params"] if p.grad is not None], group)
        for param in self._index:  # and not in the order of backward, so that results are the same with and without
            if param in self._pending:
                with torch.autocast(param.device.type, enabled=False):
                    self._update_projected(param, self._pending[param])
        self._pending.clear()
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state that :meth:`state_dict` returned.

        ``lr``, ``betas``, ``eps``, ``weight_decay`` and any extra keys of the groups come from ``state_dict``; the
        projection's settings (``rank``, ``update_gap``, ``scale``, ``projection``, ``rotate_moments``, ``seed``) and
        ``state_bits`` stay as this optimizer has them. Tensors are copied, to the parameter's device, and keep float32
        where the parameter is in half precision; moments of the other width are converted.

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
        self._number_parameters()  # the groups are new ones
        # torch has just cast the state to the parameter's dtype, which would round float32 moments to bfloat16
        for param, group, state in self._match(loaded):
            if not state:
                continue
            own = self.state[param] = {key: state[key].to("cpu", copy=True) for key in _COUNTERS if key in state}
            own.update(
                {key: state[key].to(param.device, state_dtype(param), copy=True) for key in _SIDES if key in state}
            )
            own.update(new_moments(tuple(state["exp_avg"].shape), param, group["state_bits"]))
            copy_moments(own, state)

    def _match(self, state_dict: StateDict) -> Iterator[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Pairs every parameter (and its group here) with its state in a state dict."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            for param, key in zip(group["params"], saved["params"]):
                yield param, group, state_dict["state"].get(key, {})

    def _check_before_step(self) -> None:
        for group in self.param_groups:
            _check_group(group)  # again, as its settings may have been changed
            for param in group["params"]:
                if param.grad is not None or param in self._pending:
                    self._check_param(param, group)

    def _check_param(self, param: Tensor, group: dict[str, Any]) -> None:
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError(
                f"GaLoreAdamW does not support sparse gradients, but the gradient of a parameter of shape "
                f"{tuple(param.shape)} is one. Use sparse=False in its nn.Embedding, or torch.optim.SparseAdam."
            )
        if param in self.state:
            _check_state(param, group, self.state[param])

    def _loss_scale_overflowed(self) -> bool:
        """Undo a GradScaler's loss scale, which it leaves to this optimizer, or tell that the step is to be skipped."""
        if not hasattr(self, "found_inf"):  # set by GradScaler for the time of the step
            return False
        if self.grad_scale is None:
            raise RuntimeError(
                "GradScaler.unscale_ cannot reach gradients that were taken inside backward. Leave it out: scaler.step "
                "unscales them. To bound their norm, set max_norm of GaLoreAdamW."
            )
        if self.found_inf:
            return True
        self._multiply_gradients(1 / self.grad_scale)
        return False

    def _scale_gradients(self) -> None:
        """Scale all gradients down to ``max_norm``."""
        if self.max_norm is None:
            return
        norm = get_total_norm(list(self._gradients()), error_if_nonfinite=False)
        self._multiply_gradients((self.max_norm / (norm + 1e-6)).clamp(max=1.0))

    def _gradients(self) -> Iterator[Tensor]:
        """What the update will be computed from."""
        for group in self.param_groups:
            if group["rank"] is None:
                yield from (param.grad for param in group["params"] if param.grad is not None)
        pending = (self._pending[param] for param in self._index if param in self._pending)
        yield from (gradient.low_rank for gradient in pending if gradient.low_rank is not None)

    def _multiply_gradients(self, factor: Tensor) -> None:
        for gradient in self._gradients():
            gradient.mul_(factor.to(gradient.device))

    def _project(self, param: Tensor) -> None:
        """Project a parameter's gradient, on a new basis where one is due, and add it to what is pending."""
        group, index = self._index[param]
        state = self.state.get(param, {})
        gradient = _as_matrix(param.grad).to(state_dtype(param))
        pending = self._pending.get(param)
        if pending is None or pending.basis is None:
            pending = _Pending(None, _basis(state), False)
            if _refresh_is_due(state, group, index):
                # of gradients taken inside backward only the projection is averaged, so not yet this one
                if self.update_in_backward and several_processes():
                    average(gradient)
                new = _new_basis(gradient, state, group, index)
                if new is not None:
                    pending = _Pending(None, share_basis(new) if several_processes() else new, True)
        if pending.basis is not None:
            low_rank = project(gradient, pending.basis)
            if self.update_in_backward and several_processes():
                average(low_rank)
            if pending.low_rank is not None:
                low_rank += pending.low_rank
            pending = pending._replace(low_rank=low_rank)
        self._pending[param] = pending

    def _update_plain(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """AdamW in the full space."""
        torchs, others = [], []
        for index, param in enumerate(params):
            if not self.state[param]:
                self.state[param] = _new_state(tuple(param.shape), param, group)
            if param.dtype == state_dtype(param) and not is_8bit(self.state[param]):
                torchs.append(param)
            else:
                others.append((index, param))
        if torchs:
            moments = [read_moments(self.state[p]) for p in torchs]
            _adamw(torchs, [p.grad for p in torchs], moments, [self.state[p]["step"] for p in torchs], group)
        for index, param in others:
            update = _adam_update(param.grad.to(state_dtype(param)), self.state[param], group)
            _apply(param, update, group, 1.0, _seed(group, -1 - index, self.state[param]))

    def _update_projected(self, param: Tensor, pending: _Pending) -> None:
        """AdamW in the low-rank space (MedSAGa, eq. 1)."""
        group, index = self._index[param]
        state = self.state[param]
        if not state:
            low_rank_shape = projected_shape(_matrix_shape(param), group["rank"], group["projection"])
            state.update(_new_state(low_rank_shape, param, group))
        if pending.is_new:
            _change_basis(state, pending.basis, param, group)
        if pending.low_rank is None:
            state["step"] += 1  # a zero gradient counts as a step in AdamW as well
            _apply(param, None, group, 1.0, _seed(group, index, state))
            return
        update = _adam_update(pending.low_rank, state, group)
        if param.dtype == state_dtype(param) and param.is_contiguous():
            _apply_low_rank(_as_matrix(param), update, pending.basis, group)
        else:
            update = project_back(update, pending.basis).view(param.shape)
            _apply(param, update, group, group["scale"], _seed(group, index, state))


def _take_in_backward(param: Tensor, optimizer: GaLoreAdamW) -> None:
    """Have a parameter's gradient projected and freed as soon as backward has computed it."""
    # weakly, or the network would keep every optimizer that ever trained it alive, and these would go on taking
    owner = weakref.ref(optimizer)

    @torch.no_grad()
    def take(param: Tensor) -> None:
        self = owner()
        if self is None:
            handle.remove()
            return
        if param not in self._index:
            return
        self._check_param(param, self._index[param][0])
        with torch.autocast(param.device.type, enabled=False):
            self._project(param)
        pending = self._pending[param]
        # all processes see the same average, and so decide alike
        if pending.low_rank is None or pending.low_rank.isfinite().all():
            param.grad = None
        else:
            del self._pending[param]  # left in place, where a GradScaler finds it

    handle = param.register_post_accumulate_grad_hook(take)


def _matrix_shape(param: Tensor) -> tuple[int, int]:
    return param.shape[0], param.numel() // param.shape[0]


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(_matrix_shape(tensor))


def _new_state(shape: tuple[int, ...], param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    return {"step": _counter(0), **new_moments(shape, param, group["state_bits"])}


def _counter(value: int) -> Tensor:
    # a tensor, as torch's own functional AdamW wants its step
    return torch.tensor(float(value), dtype=torch.float32, device="cpu")


def _seed(group: dict[str, Any], index: int, state: dict[str, Any]) -> int:
    # apart for every parameter and step, and always within the 64 bits a generator takes
    step = int(state["step"].item()) if state else 0
    return ((group["seed"] * 1_000_003 + index) * 1_000_003 + step) % 2**63


def _basis(state: dict[str, Any]) -> Basis | None:
    return Basis(*(state.get(side) for side in _SIDES)) if "basis_step" in state else None


def _refresh_is_due(state: dict[str, Any], group: dict[str, Any], index: int) -> bool:
    if "basis_step" not in state:
        return True
    step, last = int(state["step"].item()), int(state["basis_step"].item())
    gap = group["update_gap"]
    if last == _SKETCHED:
        return step > index % gap  # one parameter after the other
    # counted in whole gaps, not by step % gap == 0, so that a refresh that was put off stays due; shifted by the
    # index, so that the cost of many refreshes is spread over the gap
    return (step + index) // gap > (last + index) // gap


def _new_basis(gradient: Tensor, state: dict[str, Any], group: dict[str, Any], index: int) -> Basis | None:
    seed = _seed(group, index, state)
    old = _basis(state)
    if old is None and not has_exact_basis((gradient.shape[0], gradient.shape[1]), group["rank"]):
        return sketch_basis(gradient, group["rank"], group["projection"], seed)
    return find_basis(gradient, group["rank"], group["projection"], seed, old)


def _change_basis(state: dict[str, Any], basis: Basis, param: Tensor, group: dict[str, Any]) -> None:
    """Take up a new basis, and carry the moments over."""
    old, step = _basis(state), int(state["step"].item())
    if group["rotate_moments"] and old is not None:
        moments = read_moments(state)
        rotate_moments(*moments, old, basis, group["betas"], step)
        write_moments(state, *moments)
    state.update({side: vectors for side, vectors in zip(_SIDES, basis) if vectors is not None})
    is_sketch = old is None and not has_exact_basis(_matrix_shape(param), group["rank"])
    state["basis_step"] = _counter(_SKETCHED if is_sketch else step)


def _adamw(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    steps: list[Tensor],
    group: dict[str, Any],
    weight_decay: float | None = None,
) -> None:
    adamw(
        params,
        grads,
        [exp_avg for exp_avg, _ in moments],
        [exp_avg_sq for _, exp_avg_sq in moments],
        [],
        steps,
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
    """Weight decay, then the update. Half precision is rounded once, or a small decay would round away."""
    value = param.to(state_dtype(param))
    value.mul_(1 - group["lr"] * group["weight_decay"])
    if update is not None:
        value.add_(update, alpha=scale)
    if value is not param:
        param.copy_(round_stochastically(value, seed) if param.dtype == torch.bfloat16 else value)


def _apply_low_rank(matrix: Tensor, update: Tensor, basis: Basis, group: dict[str, Any]) -> None:
    """The same from the low-rank space, in one pass over the matrix, and without its update in full."""
    decay = float(1 - group["lr"] * group["weight_decay"])
    if basis.left is None:
        left, right = update, basis.right.T
    else:
        left, right = basis.left, update if basis.right is None else update @ basis.right.T
    matrix.addmm_(left, right, beta=decay, alpha=group["scale"])


def _check_group(group: dict[str, Any]) -> None:
    if group["lr"] < 0:
        raise ValueError(f"lr must not be negative, got {group['lr']}.")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}.")
    for key in ("eps", "weight_decay"):
        if group[key] < 0:
            raise ValueError(f"{key} must not be negative, got {group[key]}.")
    if group["state_bits"] not in STATE_BITS:
        raise ValueError(f"state_bits must be one of {STATE_BITS}, got {group['state_bits']!r}.")
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
        expected.update(moment_shapes(tuple(param.shape), state))
    else:
        shape = _matrix_shape(param)
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
