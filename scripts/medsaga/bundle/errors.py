"""Errors that a user of ``python -m monai.bundle`` can read."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["show_root_cause"]


def show_root_cause() -> None:
    """End the report of an uncaught error with its first cause.

    MONAI wraps what goes wrong in a config once for each level ("Failed to evaluate ...", "applying transform ..."), so
    that the last line of the traceback, which people read, says least. Called from a config's ``initialize``.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error:
        print(f"\nThe cause: {type(cause).__name__}: {cause}", file=sys.stderr)
