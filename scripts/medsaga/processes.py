"""Work on many items in several processes; if one of them is ended, only its own item is lost."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psutil
import torch

__all__ = ["ENDED", "ENDED_CAUSE", "in_processes", "process_context", "processes_for"]

ENDED = object()  # in the place of a result: the process that worked on the item was ended
ENDED_CAUSE = "reading it ended the process, most likely because memory ran out."

_LIBRARIES = 800 * 2**20  # bytes that a process takes before it has read anything
# bytes of memory for a byte of file: compressed 16-bit voxels become 32-bit ones, of which transforms hold some copies
_EXPANSION = 24
_CGROUP = Path("/sys/fs/cgroup")


def in_processes(
    job: Callable[[Any], Any], items: Sequence[Any], processes: int, begin: Callable[[], None] | None = None
) -> Iterator[tuple[int, Any]]:
    """Call a function with each item.

    Processes are those of :func:`process_context`, use one thread each, and end with this process, however it ends.

    Args:
        job: the function; it, the items and its results are pickled.
        items: at most two for each process are handed out at a time.
        processes: how many.
        begin: called first in each process.

    Returns:
        (number of the item, result), in the order in which they are done. The result is :data:`ENDED` for an item
        whose process was ended, say by the kernel for want of memory, also when it had memory to itself.
    """
    waiting = deque(range(len(items)))
    while waiting:
        running: dict[int, Future] = {}
        with _pool(min(processes, len(waiting)), begin) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * processes:
                        running[waiting[0]] = pool.submit(job, items[waiting[0]])
                        waiting.popleft()
                    wait(running.values(), return_when=FIRST_COMPLETED)
                    for index in [index for index, future in running.items() if future.done()]:
                        result = running[index].result()
                        del running[index]
                        yield index, result
            except BrokenProcessPool:
                pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # what is left need not be done
                raise
        yield from _one_by_one(job, items, list(running), begin)


def _one_by_one(
    job: Callable[[Any], Any], items: Sequence[Any], numbers: list[int], begin: Callable[[], None] | None
) -> Iterator[tuple[int, Any]]:
    """Find out which of some items ends its process."""
    while numbers:
        with _pool(1, begin) as pool:
            while numbers:
                try:
                    result = pool.submit(job, items[numbers[0]]).result()
                except BrokenProcessPool:
                    yield numbers.pop(0), ENDED
                    break
                yield numbers.pop(0), result


def _pool(processes: int, begin: Callable[[], None] | None) -> ProcessPoolExecutor:
    # the process that is forked keeps the environment in which it was started
    return ProcessPoolExecutor(processes, process_context(), initializer=_begin, initargs=(begin, dict(os.environ)))


def _begin(begin: Callable[[], None] | None, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if begin is not None:
        begin()


def _end_with_parent() -> None:
    """A pool's process would otherwise wait for ever for the next item of a parent that was killed."""
    wait_for([multiprocessing.parent_process().sentinel])
    os._exit(1)


def process_context() -> BaseContext:
    """How processes are started. Not as forks of this one: a fork of a process whose OpenMP threads have run can hang.

    On Linux they are forks of one that has imported MONAI and done nothing else, which saves each of them ten seconds;
    elsewhere each is new.
    """
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["monai"])
    return context


def processes_for(largest: int) -> int:
    """How many processes that each read one case have cores and memory on this machine.

    Args:
        largest: bytes of the files of the largest case.

    Returns:
        at least one; one in a process that may not start others.
    """
    if multiprocessing.current_process().daemon:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_free_memory() // (_LIBRARIES + _EXPANSION * largest))))


def _free_memory() -> int:
    free = psutil.virtual_memory().available
    try:  # a container may have less than its machine; what it has read of files is given up when needed
        limit, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return min(free, int(limit) - int(used) + int(counts["inactive_file"])) if limit.isdigit() else free
    except (OSError, ValueError, KeyError):
        return free
