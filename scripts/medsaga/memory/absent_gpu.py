"""Fake CUDA tensors that train on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["absent_gpu"]

_CUDA = torch.device("cuda", 0)
_NOWHERE = torch.device("meta")
_generator = torch.Generator  # on the CPU


@contextmanager
def absent_gpu(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let fake CUDA tensors run forward and backward, mixed precision included, where there is no GPU.

    Enter it last, above ``FakeTensorMode`` and any other mode. Fused attention is taken to be there, as on recent GPUs.

    Args:
        parameters: all that gradients are computed for, before their first forward pass.
    """
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        patch("torch.cuda.is_bf16_supported", return_value=True),
        patch("torch.nn.functional.scaled_dot_product_attention", _attention),
        patch("torch.Generator", lambda device: _generator()),
        torch.autograd.set_multithreading_enabled(False),
        _AutogradNowhere() as mode,
    ):
        mode.note(parameters)
        yield


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """``scaled_dot_product_attention`` by the kernel that a GPU has for it; torch would ask the GPU which."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    if query.dtype != torch.float32 and attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, scale=scale)[0]


class _AutogradNowhere(TorchDispatchMode):
    """Tells autograd that CUDA tensors are on "meta", as it would ask a GPU for streams; tells all others the truth.

    Autograd reads the device of an operator's result before any other code can, and again in backward. Other code, such
    as autocast, reads it later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results = WeakTensorKeyDictionary()
        self._edges: list[Any] = []
        self._noting = False

    def note(self, parameters: Iterable[Tensor]) -> None:
        """Have autograd note the parameters, which are no operator's results."""
        self._noting = True
        self._edges += [get_gradient_edge(parameter) for parameter in parameters if parameter.requires_grad]
        self._noting = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        args, kwargs = tree_map_only(torch.device, _where, (args, kwargs))
        if func is not torch.ops.prim.device.default:
            result = func(*args, **kwargs)
            differentiable = torch.is_grad_enabled() and any(
                isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs))
            )
            if differentiable:
                self._results.clear()
                self._results.update({leaf: True for leaf in tree_leaves(result) if isinstance(leaf, Tensor)})
            return result
        tensor = args[0]
        device = func(tensor)
        in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        is_noted = self._noting or self._results.pop(tensor, False)
        return _NOWHERE if device.type == "cuda" and (in_backward or is_noted) else device


def _where(device: torch.device) -> torch.device:
    return _CUDA if device == _NOWHERE else device
