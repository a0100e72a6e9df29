"""Runs worked off, by one process or by several that share a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from medsaga.bundle import find_bundle

from ..bundle_run import execute
from .plan import Run

__all__ = ["work_off"]

logger = logging.getLogger(__name__)

# a slice of every test case, for the best, median and worst to be chosen from
_PICTURES = {"image_grid": 1, "validate#handlers#1#num_cases": 10_000}
_LOOK_SECONDS = 5.0  # between looks whether another process has ended a run


def work_off(runs: Sequence[Run], work: Path, show: Callable[[Run], None]) -> dict[Run, str]:
    """Execute what is missing. Runs that another process has in work are left to it, and taken over if it dies.

    Args:
        runs: in the order of their execution.
        work: folder that the processes share.
        show: called after each run that is done, also by others.

    Returns:
        what failed, with the reason; the others go on.
    """
    failed: dict[Run, str] = {}
    waiting = list(runs)
    while waiting:
        left = [run for run in waiting if not _attempt(run, work, show, failed)]
        if len(left) == len(waiting):
            time.sleep(_LOOK_SECONDS)
        waiting = left
    return failed


def _attempt(run: Run, work: Path, show: Callable[[Run], None], failed: dict[Run, str]) -> bool:
    """Whether the run is at its end; False while another process has it."""
    folder = work / run.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # the system lets go of it when the process dies
        with FileLock(folder / "lock", blocking=False):
            logger.info("%s", run.name)
            cache = work / run.bundle / "cache"
            execute(folder, Path(find_bundle(run.bundle)), run.overlays, run.options, cache, _PICTURES)
    except Timeout:
        return False
    except RuntimeError as err:
        logger.error("%s failed: %s", run.name, err)
        failed[run] = str(err)
        return True
    show(run)
    return True
