"""The reference implementation of GaLore."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["import_galore_torch"]


def import_galore_torch() -> ModuleType:
    """The reference implementation of GaLore, which only tests and experiments need.

    Raises:
        RuntimeError: when it is not installed, with what to install.
    """
    try:
        return importlib.import_module("galore_torch")
    except ImportError as error:
        raise RuntimeError(
            f"galore_torch cannot be imported ({error}). Install it with pip install galore-torch==1.0, or leave it "
            "out with --only"
        ) from error
