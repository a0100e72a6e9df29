"""Modes that see the operators on plain tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

__all__ = ["OperatorMode"]


class OperatorMode(TorchDispatchMode):
    """A mode whose :meth:`call` stands in for every operator.

    Tensors made of others, such as torchao's 8-bit states, have no memory of their own. Their operators are left to
    them, and so come in parts.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented
        return self.call(func, args, kwargs or {})

    @abstractmethod
    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operator ``func`` is to return."""
