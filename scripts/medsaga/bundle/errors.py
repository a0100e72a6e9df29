"""Errors that a user of ``python -m monai.bundle`` can read."""

from __future__ import annotations

import sys
from types import TracebackType

from medsaga.failures import CasesFailedError, root_cause

__all__ = ["root_cause", "show_root_cause"]


def show_root_cause() -> None:
    """End the report of an uncaught error with what caused it.

    MONAI wraps what goes wrong in a config once for each level ("Failed to evaluate ...", "applying transform ..."), so
    that the last line of the traceback, which people read, says least. Of cases that failed the report is their list
    alone. Called from a config's ``initialize``.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = root_cause(error)
    if isinstance(cause, CasesFailedError):
        print(f"\n{cause}", file=sys.stderr)
        return
    sys.__excepthook__(kind, error, trace)
    if cause is not error:
        print(f"\nThe cause: {type(cause).__name__}: {cause}", file=sys.stderr)
