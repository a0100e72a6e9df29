"""What a process that uses a slice cache leaves in it while it runs: which entries it needs, what it is writing.

A run is a folder ``.runs/HOST-ID`` in the cache, and a lock on ``.runs/HOST-ID.lock``. The kernel releases the lock
when the process ends, also after ``kill -9`` and in any container, so on the same computer it is known at once which
runs have ended. Other computers may not see a lock on a network file system. For them the lock's file is touched every
hour, and a run counts as ended when this was more than a day ago.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medsaga.files import replacing

__all__ = ["RUNS", "Run", "names_in_use", "remove_ended"]

RUNS = ".runs"

_HOUR = 60 * 60  # seconds
_DAY = 24 * _HOUR
_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


class Run:
    """This process's use of a cache, until nothing refers to it any more.

    Args:
        cache_dir: folder of the cache.

    Attributes:
        folder: for what is being written; None in a cache in which nothing can be written.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.folder: Path | None = cache_dir / RUNS / f"{_HOST}-{uuid.uuid4().hex[:12]}"
        lock = FileLock(f"{self.folder}.lock", thread_local=False)
        try:
            self.folder.parent.mkdir(exist_ok=True)
            lock.acquire(blocking=False)
            self.folder.mkdir()
        except (OSError, Timeout):
            lock.release()
            self.folder = None
            return
        ended = threading.Event()
        threading.Thread(target=_stay_fresh, args=(Path(lock.lock_file), ended), daemon=True).start()
        weakref.finalize(self, _end, self.folder, lock, ended, os.getpid())

    def __reduce__(self) -> tuple:
        return type(None), ()  # only the process that started the run holds it, not those that load data for it

    def uses(self, names: Iterable[str]) -> None:
        """Say which entries this process needs: no other removes them while it runs."""
        if self.folder is not None:
            with suppress(OSError), replacing(self.folder / "entries") as temporary:
                temporary.write_text("\n".join(names))


def _stay_fresh(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(_HOUR):
        with suppress(OSError):
            os.utime(lock)


def _end(folder: Path, lock: FileLock, ended: threading.Event, pid: int) -> None:
    if os.getpid() == pid:  # not in a process that was forked to load data
        ended.set()
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def names_in_use(cache_dir: Path) -> set[str]:
    """Names of the entries that running processes need, this one included."""
    names: set[str] = set()
    for entries in (cache_dir / RUNS).glob("*/entries"):
        with suppress(OSError):
            names.update(entries.read_text().split())
    return names


def remove_ended(cache_dir: Path) -> None:
    """Remove the files of processes that ended without removing them."""
    for path in (cache_dir / RUNS).glob("*"):
        with suppress(OSError):  # another process removes it, too
            if path.suffix == ".lock":
                # the lock of a removed folder, or of an entry; a lock that is held is younger
                if not path.with_suffix("").exists() and time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()
            elif _is_over(path):
                shutil.rmtree(path, ignore_errors=True)
                Path(f"{path}.lock").unlink(missing_ok=True)


def _is_over(folder: Path) -> bool:
    lock = Path(f"{folder}.lock")
    if not lock.exists():
        return True
    if folder.name.rpartition("-")[0] != _HOST:
        return time.time() - lock.stat().st_mtime > _DAY
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False
