"""AdamW whose state for chosen matrices lives in a low-rank space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from .distributed import is_sharded, local, whole
from .pending import Pending, call_after_backward, with_gradient
from .state import check_group, check_state, restored
from .update import update_plain, update_projected

__all__ = ["GaLoreAdamW"]

# of a group: the user's choice for this run, which a checkpoint must not overrule
_SETTINGS = ("rank", "update_gap", "scale", "projection", "rotate_moments", "seed", "state_bits")


class GaLoreAdamW(Optimizer):
    r"""AdamW with gradient low-rank projection (GaLore) for the parameter groups that give a ``rank``.

    A group without ``rank`` is updated as by :class:`torch.optim.AdamW`. In a group with ``rank`` each gradient
    :math:`G` of shape :math:`m \times n` is projected, AdamW's rule :math:`\rho` is kept in the low-rank space, and its
    result is projected back (MedSAGa, eq. 1 and 2):

    .. math:: W \leftarrow (1 - \eta\lambda) W - \eta \alpha P \rho(P^T G Q) Q^T

    * ``"one-sided"`` (GaLore's default) projects the shorter side only: the two moments take ``r * max(m, n)`` each and
      the basis ``r * min(m, n)``.
    * ``"two-sided"`` is eq. 1 as written: the moments take ``r * r`` each and the bases ``r * (m + n)``. In a
      parameter's very first step :math:`P^T G Q` is diagonal, and AdamW turns the rounding errors off the diagonal into
      full steps: begin with a warmup.

    A tensor with more than two dimensions, such as a convolution's weight, is treated as the matrix ``(out, -1)``.

    The basis is the top singular vectors of the current gradient, found anew every ``update_gap`` steps. Refreshes of
    different parameters fall on different steps; a large matrix begins with a cheap sketch of its basis, so that the
    first step is no longer than others, and gets its singular vectors soon after. A gradient that is all zero or not
    finite says nothing about the basis: the refresh is then put off to the next step with a usable gradient and the old
    basis stays. While there is no basis yet, such a gradient only causes weight decay. Once there is one, a non-finite
    gradient reaches the moments and the parameter as it does in :class:`torch.optim.AdamW`, but never the basis; a
    ``GradScaler`` keeps it out altogether.

    With ``update_in_backward`` a gradient of a group with ``rank`` is projected as soon as backward has computed it,
    and freed: no more than one of them exists at a time. Only its projection is kept until :meth:`step`. The
    projections of several backward passes before a step are summed (gradient accumulation; a new basis comes from the
    first pass). ``zero_grad`` drops the kept projections. A gradient that is not finite stays in ``.grad``, where a
    ``GradScaler`` finds it and skips the whole step; unscaling is done by this optimizer, not by the scaler. Under
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
        rotate_moments: whether to carry the moments over into a new basis (LDAdam). GaLore does not: it keeps
            the moments of the old basis' directions. Which learns better depends on rank and ``update_gap``
            (figures in ``docs/projection.md``).
        seed: of the randomised search for the basis and of stochastic rounding; torch's global generator is left alone.
        state_bits: 32, or 8 for moments of a byte an element (torchao's block-wise quantisation; small tensors stay
            float32).
        update_in_backward: whether to take projected parameters' gradients inside backward.
        max_norm: bound on the norm of all gradients together; larger ones are scaled down (in place, as by
            :func:`torch.nn.utils.clip_grad_norm_`). Gradients of projected parameters count after projection, so no
            second pass over them is needed. ``None`` for no bound.

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
        self._pending: dict[Tensor, Pending] = {}
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
        if "update_in_backward" in state:  # called for a copy, not by load_state_dict, which is not done yet
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
            check_group(self.param_groups[-1])
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
                    call_after_backward(param, self._take)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, including the projections kept since a backward pass."""
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
                self._project(param)
        self._scale_gradients()
        for group in self.param_groups:
            if group["rank"] is None:
                update_plain([p for p in group["params"] if p.grad is not None], self.state, group)
        for param in self._index:  # not in backward's order: same results with update_in_backward
            if param in self._pending:
                with torch.autocast(param.device.type, enabled=False):
                    update_projected(param, self._pending[param], self.state[param], *self._index[param])
        self._pending.clear()
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state that :meth:`state_dict` returned.

        ``lr``, ``betas``, ``eps``, ``weight_decay`` and any extra keys of the groups come from ``state_dict``; the
        projection's settings (``rank``, ``update_gap``, ``scale``, ``projection``, ``rotate_moments``, ``seed``) and
        ``state_bits`` stay as this optimizer has them. Tensors are copied, to the parameter's device, and keep float32
        where the parameter is in half precision; moments with another ``state_bits`` are converted.

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
                check_state(param, group, state)
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
            if state:
                self.state[param] = restored(state, param, group)

    def _match(self, state_dict: StateDict) -> Iterator[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Pairs every parameter (and its group here) with its state in a state dict."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            for param, key in zip(group["params"], saved["params"]):
                yield param, group, state_dict["state"].get(key, {})

    def _check_before_step(self) -> None:
        for group in self.param_groups:
            check_group(group)  # again, as its settings may have been changed
            for param in group["params"]:
                if param.grad is not None or param in self._pending:
                    self._check_param(param, group)

    def _check_param(self, param: Tensor, group: dict[str, Any]) -> None:
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError(
                f"GaLoreAdamW does not support sparse gradients, but the gradient of a parameter of shape "
                f"{tuple(param.shape)} is sparse. Use sparse=False in its nn.Embedding, or torch.optim.SparseAdam."
            )
        if param in self.state:
            check_state(param, group, self.state[param])

    def _loss_scale_overflowed(self) -> bool:
        """Undo the loss scale, which GradScaler leaves to this optimizer; return whether the step must be skipped."""
        if not hasattr(self, "found_inf"):  # set by GradScaler for the time of the step
            return False
        if self.grad_scale is None:
            raise RuntimeError(
                "GradScaler.unscale_ cannot reach gradients that were used inside backward. Do not call it: "
                "scaler.step unscales them. To bound their norm, set max_norm of GaLoreAdamW."
            )
        if self.found_inf:
            return True
        self._multiply_gradients(1 / self.grad_scale)
        return False

    def _scale_gradients(self) -> None:
        """Scale all gradients down to ``max_norm``."""
        if self.max_norm is None:
            return
        norm = get_total_norm([gradient for gradient in self._gradients() if not is_sharded(gradient)])
        if sharded := [gradient for gradient in self._gradients() if is_sharded(gradient)]:
            norm = torch.hypot(norm, whole(get_total_norm(sharded)))
        self._multiply_gradients((self.max_norm / (norm + 1e-6)).clamp(max=1.0))

    def _gradients(self) -> Iterator[Tensor]:
        """The gradients and projections that the update will be computed from."""
        for group in self.param_groups:
            if group["rank"] is None:
                yield from (param.grad for param in group["params"] if param.grad is not None)
        pending = (self._pending[param] for param in self._index if param in self._pending)
        yield from (gradient.low_rank for gradient in pending if gradient.low_rank is not None)

    def _multiply_gradients(self, factor: Tensor) -> None:
        for gradient in self._gradients():
            local(gradient).mul_(factor.to(gradient.device))

    def _project(self, param: Tensor) -> None:
        group, index = self._index[param]
        state = self.state.get(param, {})
        # torch.optim has no matrix products, so stepping inside autocast is harmless there; keep it so here
        with torch.autocast(param.device.type, enabled=False):
            self._pending[param] = with_gradient(
                self._pending.get(param), param, state, group, index, averaged=self.update_in_backward
            )

    def _take(self, param: Tensor) -> None:
        """Project a gradient and free it, inside backward."""
        if param not in self._index:
            return
        self._check_param(param, self._index[param][0])
        self._project(param)
        pending = self._pending[param]
        # all processes see the same average, and so decide alike
        if pending.low_rank is None or pending.low_rank.isfinite().all():
            param.grad = None
        else:
            del self._pending[param]  # left in place, where a GradScaler finds it
