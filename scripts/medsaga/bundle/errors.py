"""Errors that a user of ``python -m monai.bundle`` can read."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["root_cause", "show_root_cause"]

# how the messages begin in which MONAI wraps another error
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "Component type", "applying transform")


def root_cause(error: BaseException) -> BaseException:
    """The error inside what MONAI has wrapped around it."""
    while error.__cause__ is not None and str(error).lstrip().startswith(_WRAPPERS):
        error = error.__cause__
    return error


def show_root_cause() -> None:
    """End the report of an uncaught error with what caused it.

    MONAI wraps what goes wrong in a config once for each level ("Failed to evaluate ...", "applying transform ..."), so
    that the last line of the traceback, which people read, says least. Called from a config's ``initialize``.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    cause = root_cause(error)
    if cause is not error:
        print(f"\nThe cause: {type(cause).__name__}: {cause}", file=sys.stderr)
