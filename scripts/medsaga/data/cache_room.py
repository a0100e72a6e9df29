"""How much disk space a slice cache takes and may take, and which entries are removed to make room."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .cache_records import at_once, record_file
from .cache_run import names_in_use, remove_ended

__all__ = ["LIMIT", "Room", "slices_file"]

LIMIT = "MEDSAGA_CACHE_GB"

_HOUR = 60 * 60  # seconds
_DAY = 24 * _HOUR
_KEPT = 30 * _DAY  # how long an entry is kept that no run uses
_SHARE = 0.8  # of what the disk has for the cache
_SCAN_AGAIN = 60  # seconds, after which other processes may have filled the cache

_FILE = re.compile(r"([0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{16})\.(npy|json)|[0-9a-f]{16}\.index\.json")
# left by earlier versions: one folder for each entry, and records that were being written
_EARLIER = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{16}){1,2}|\.building-.*|\..*\.json\.[0-9a-f]{32}")


def slices_file(cache_dir: Path, name: str) -> Path:
    """The file with the slices of an entry."""
    return cache_dir / f"{name}.npy"


@dataclass
class _Entry:
    recorded: bool = False
    size: int | None = None  # bytes of its slices; None where they are not kept
    used: float = 0.0  # seconds since 1970


class Room:
    """The entries of a cache, and how many bytes their slices may take.

    Args:
        cache_dir: folder of the cache. Files left by ended processes, and entries that no run has used for 30 days, are
            removed from it.

    Attributes:
        entries: by name.
        limit: bytes: ``MEDSAGA_CACHE_GB``, or 80 % of what the disk has left for the cache.

    Raises:
        ValueError: ``MEDSAGA_CACHE_GB`` is no number of gigabytes.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self._scan()

    def _scan(self) -> None:
        remove_ended(self.cache_dir)
        now, self._scanned = time.time(), time.monotonic()
        self.in_use = names_in_use(self.cache_dir)
        self.entries: dict[str, _Entry] = defaultdict(_Entry)
        for item in os.scandir(self.cache_dir):
            match = _FILE.fullmatch(item.name)
            if match is None and not _EARLIER.fullmatch(item.name):
                continue
            with suppress(FileNotFoundError):  # another process may tidy, too
                state = item.stat()
                name = match and match[1]
                if now - state.st_mtime > (_KEPT if match else _DAY) and name not in self.in_use:
                    _remove(Path(item.path))
                elif name:
                    entry = self.entries[name]
                    entry.used = max(entry.used, state.st_mtime)
                    if match[2] == "npy":
                        entry.size = state.st_size
                    else:
                        entry.recorded = True
        self.taken = sum(entry.size or 0 for entry in self.entries.values())
        self.limit = _limit(self.cache_dir, self.taken)

    def has(self, name: str, slices: bool) -> bool:
        """Whether there is an entry of that name, with its slices or not."""
        entry = self.entries.get(name)
        return entry is not None and entry.recorded and (entry.size is not None or not slices)

    def touch(self, names: Iterable[str]) -> None:
        """Say that entries are used now."""
        late = time.time() - _HOUR  # touching more often adds nothing, and each costs a request to the file system
        at_once(self._touch, [name for name in names if self.entries[name].used < late])

    def _touch(self, name: str) -> None:
        for file in (record_file(self.cache_dir, name), slices_file(self.cache_dir, name)):
            with suppress(OSError):  # not there, or of a cache that belongs to somebody else
                os.utime(file)

    def left(self) -> int:
        """Bytes that this process may add if all entries that no running process uses are removed."""
        return self.limit - self.taken + sum(entry.size for _, entry in self._removable())

    def add(self, name: str, size: int) -> bool:
        """Count an entry that was written, removing others that no running process uses, the longest unused first.

        Returns:
            whether there is room for it; else it is removed itself.
        """
        if time.monotonic() - self._scanned > _SCAN_AGAIN:
            self._scan()
        else:
            self.taken += size - (self.entries[name].size or 0)
        self.entries[name] = _Entry(True, size, time.time())
        if self.taken > self.limit:
            for other, entry in sorted(self._removable(), key=lambda item: item[1].used):
                if self.taken > self.limit:
                    self._drop(other, entry)
        if self.taken > self.limit:
            self._drop(name, self.entries[name])
            return False
        return True

    def _removable(self) -> list[tuple[str, _Entry]]:
        return [(n, e) for n, e in self.entries.items() if e.size is not None and n not in self.in_use]

    def _drop(self, name: str, entry: _Entry) -> None:
        slices_file(self.cache_dir, name).unlink(missing_ok=True)
        self.taken -= entry.size
        entry.size = None


def _limit(cache_dir: Path, taken: int) -> int:
    value = os.environ.get(LIMIT, "").strip()
    if not value:
        return int(_SHARE * (taken + shutil.disk_usage(cache_dir).free))
    try:
        size = float(value)
    except ValueError:
        size = -1.0
    if not (0 <= size < math.inf):
        raise ValueError(f"{LIMIT} is {value!r}: set it to the gigabytes that the slice cache may take, such as 50")
    return int(size * 1e9)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
