"""Wait for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

Result = TypeVar("Result")


def until(condition: Callable[[], Result], seconds: float = 60, process=None, why: Callable[[], str] = str) -> Result:
    """Call ``condition`` until it returns something true, and return that.

    Args:
        condition: what is waited for.
        seconds: how long.
        process: with ``poll()``; when it has ended, nothing is waited for any longer.
        why: what the error says, such as the end of a log.

    Raises:
        AssertionError: the time is over, or the process has ended.
    """
    end = time.monotonic() + seconds
    while True:
        going_on = time.monotonic() < end and (process is None or process.poll() is None)
        if result := condition():
            return result
        assert going_on, why() or f"not within {seconds} seconds"
        time.sleep(0.05)
