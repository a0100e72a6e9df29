"""Compute once what many tests need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["once"]


@contextmanager
def once(owner: Any, name: str, key: Callable[..., Hashable]) -> Iterator[None]:
    """While it lasts, a function of a module or class is called once for arguments of the same ``key``."""
    compute, results = getattr(owner, name), {}

    def remembered(*arguments: Any) -> Any:
        place = key(*arguments)
        if place not in results:
            results[place] = compute(*arguments)
        return results[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, remembered)
        yield
