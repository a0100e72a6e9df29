"""Values for programs that read the values of fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["FakeValues"]

# the operators behind tensor.item(), float(tensor) and bool(tensor)
_READ = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
)
# tensor.device, of which a step asks more often than of all else
_DEVICE = torch.ops.prim.device.default
# GradScaler's search for gradients that are not finite: it finds none
_SEARCH = torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default
_CPU = torch.device("cpu")
# elements up to which values are kept: counters and lists of axes
_SMALL = 64


class FakeValues(TorchDispatchMode):
    """Answer for the values of fake tensors, so that programs which look at a few of them run.

    Above ``FakeTensorMode``. Small tensors that follow from constants alone, such as an optimizer's step counters, have
    their true values. All else reads as 1, or True: a gradient's norm, or whether it is finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:
            return args[0].fake_device
        kwargs = kwargs or {}
        if func in _READ:
            if self._are_known(args, kwargs):
                return self._compute(func, args, kwargs)
            return True if func is _READ[-1] or args[0].dtype == torch.bool else 1
        result = func(*args, **kwargs)
        if func is _SEARCH:
            return result
        results = _tensors(result)
        if all(leaf.numel() <= _SMALL for leaf in results) and self._are_known(args, kwargs):
            values = tree_leaves(self._compute(func, args, kwargs))
            self._known.update(zip(results, (value for value in values if isinstance(value, Tensor))))
        elif func._schema.is_mutable:
            for tensor in _tensors((args, kwargs)):
                self._known.pop(tensor, None)
        return result

    def _are_known(self, args: Any, kwargs: Any) -> bool:
        return all(not isinstance(tensor, FakeTensor) or tensor in self._known for tensor in _tensors((args, kwargs)))

    def _compute(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map_only(FakeTensor, lambda fake: self._known[fake], (args, kwargs))
        args, kwargs = tree_map_only(torch.device, lambda _: _CPU, (args, kwargs))
        with no_dispatch():
            return func(*args, **kwargs)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
