"""Errors that a user of ``python -m monai.bundle`` can read."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from types import TracebackType

from medsaga.failures import CasesFailedError, root_cause

__all__ = ["root_cause", "show_root_cause"]


def show_root_cause(traceback: bool = False) -> None:
    """Report an uncaught error by its cause, as the last line.

    MONAI wraps an error in a config once for each level ("Failed to evaluate ...", "applying transform ..."), so that
    the last line of the traceback, which people read, is the least informative. Called from a config's ``initialize``.

    Args:
        traceback: also show where in the code it comes from, before the cause. For failed cases only their list is
            reported.
    """
    sys.excepthook = partial(_report, traceback=traceback)


def _report(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, traceback: bool = False
) -> None:
    # earlier output must come before the report, and nothing after it: libraries warn when the process ends
    sys.stdout.flush()
    warnings.simplefilter("ignore")
    if issubclass(kind, KeyboardInterrupt) and not traceback:
        print("\nInterrupted.", file=sys.stderr)
        return
    cause = root_cause(error)
    text = str(cause) if isinstance(cause, CasesFailedError) else f"{type(cause).__name__}: {cause}"
    if traceback:
        sys.__excepthook__(kind, error, trace)
    elif not isinstance(cause, CasesFailedError):
        print("\nThe run failed. Add --traceback true to see where in the code.", file=sys.stderr)
    print(f"\n{text}", file=sys.stderr, flush=True)
    _tell_torchrun(text)


def _tell_torchrun(text: str) -> None:
    """Give the cause to torchrun, whose own report at the end would not name it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        more = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": text, "extraInfo": more}}))
