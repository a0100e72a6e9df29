"""Make the entries of a slice cache in several processes at once, none of them twice."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from medsaga.failures import Failure, failure_of
from medsaga.files import write_json
from medsaga.processes import ENDED, ENDED_CAUSE, in_processes, processes_for

from .cache_records import make_record, read_record, record_file
from .cache_room import slices_file
from .cache_run import RUNS
from .case import files_of
from .case_slices import classes_in, slices_of, trying_again, write_slices

__all__ = ["FULL", "Done", "Maker", "Task", "make_all"]

FULL = "full"  # file in a run's folder; once it exists, no more slices are kept
_PATIENCE = 600  # seconds to wait for another process that makes the same entry
_LONG = 60  # seconds of work above which it is worth starting processes


class Task(NamedTuple):
    """A case to preprocess.

    Attributes:
        case: of a datalist.
        name: of its entry.
        keeps: whether its slices are kept.
        stale: names of entries that it takes the place of.
        size: bytes of its files.
        waits: whether to wait for another process that makes the same entry.
    """

    case: dict
    name: str
    keeps: bool
    stale: tuple[str, ...]
    size: int
    waits: bool = False


class Done(NamedTuple):
    """The result of a task.

    Attributes:
        failure: why the case cannot be used.
        record: the cache's record of the case.
        written: bytes of slices that were written.
        busy: another process is making the entry.
    """

    failure: Failure | None = None
    record: dict[str, Any] | None = None
    written: int = 0
    busy: bool = False


@dataclass(frozen=True)
class Maker:
    """Makes entries.

    Args:
        cache_dir: folder of the cache.
        run: folder of this run, for what is being written.
        preprocessing: see :func:`~medsaga.data.slice_cache.cache_cases`.
        num_classes: including background.
    """

    cache_dir: Path
    run: Path
    preprocessing: Callable
    num_classes: int

    def __call__(self, task: Task) -> Done:
        """Preprocess a case, unless another process does or has done so meanwhile.

        Raises:
            OSError: the disk is full.
        """
        # Where a file system has no locks, two processes may make the same entry: the second one then replaces the
        # first.
        claim = FileLock(self.cache_dir / RUNS / f"{task.name}.lock")
        try:
            with claim.acquire(timeout=_PATIENCE if task.waits else 0):
                try:
                    return self._made_by_another(task) or self._make(task)
                finally:
                    Path(claim.lock_file).unlink(missing_ok=True)
        except Timeout:
            return self._make(task) if task.waits else Done(busy=True)

    def _made_by_another(self, task: Task) -> Done | None:
        kept = slices_file(self.cache_dir, task.name).is_file() or (self.run / FULL).exists()
        record = read_record(self.cache_dir, task.name)
        return None if record is None or (task.keeps and not kept) else Done(record=record)

    def _make(self, task: Task) -> Done:
        try:
            slices, across = trying_again(partial(slices_of, task.case, self.preprocessing))
            table = classes_in(slices, self.num_classes)
        except Exception as err:
            return Done(failure_of(err, files_of(task.case), "cannot be read"))
        written, full = 0, self.run / FULL
        if task.keeps and not full.exists() and slices.nbytes > shutil.disk_usage(self.cache_dir).free:
            full.touch()
        if task.keeps and not full.exists():
            # written under another name and renamed: a build that is killed leaves no half entry
            work = self.run / task.name
            try:
                write_slices(work, slices)
                written = work.stat().st_size
                os.replace(work, slices_file(self.cache_dir, task.name))
            finally:
                work.unlink(missing_ok=True)
        record = make_record(table, slices.nbytes, across)
        write_json(record_file(self.cache_dir, task.name), record)
        for name in task.stale:
            for path in (slices_file(self.cache_dir, name), record_file(self.cache_dir, name)):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        return Done(record=record, written=written)


def make_all(maker: Maker, tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[Task, Done]]:
    """Make entries; those that another process is making are waited for at the end.

    Args:
        maker: makes one.
        tasks: one for each entry.
        num_workers: processes to begin with, at most as many as cores and memory allow. With 0 the work begins in this
            process; if the rest would take longer than a minute, as many processes as allowed are started.
    """
    busy = []
    for task, done in _each(maker, tasks, num_workers):
        if done.busy:
            busy.append(task._replace(waits=True))
        else:
            yield task, done
    yield from _each(maker, busy, num_workers)


def _each(maker: Maker, tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[Task, Done]]:
    start, first = time.monotonic(), 0
    processes = processes_for(max((task.size for task in tasks), default=0))
    while first < len(tasks) and not (num_workers and len(tasks) > 1):
        yield tasks[first], maker(tasks[first])
        first += 1
        seconds = (time.monotonic() - start) / first * (len(tasks) - first)
        if processes > 1 and seconds > _LONG and _can_be_sent(maker):
            break
    for index, done in in_processes(maker, tasks[first:], processes):
        task = tasks[first + index]
        if done is ENDED:
            done = Done(Failure(files_of(task.case)[0], ENDED_CAUSE))
        yield task, done


def _can_be_sent(maker: Maker) -> bool:
    """Whether its preprocessing can be sent to another process; functions without a name cannot."""
    try:
        pickle.dumps(maker)
    except Exception:
        return False
    return True
