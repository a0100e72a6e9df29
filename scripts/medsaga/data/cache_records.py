"""What a slice cache knows of the cases that were read: how many slices, which classes each shows, their bytes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medsaga.files import write_json

from .case_slices import trying_again

__all__ = ["Records", "at_once", "make_record", "read_record", "record_file", "table_of"]

logger = logging.getLogger(__name__)

_THREADS = 16  # requests at once to a file system that may be on a network

Item = TypeVar("Item")
Result = TypeVar("Result")


def record_file(cache_dir: Path, name: str) -> Path:
    """The file with the record of an entry."""
    return cache_dir / f"{name}.json"


def read_record(cache_dir: Path, name: str) -> dict[str, Any] | None:
    """The record of an entry; None where there is none that can be read."""
    try:
        return trying_again(lambda: json.loads(record_file(cache_dir, name).read_text()))
    except (OSError, ValueError) as err:
        logger.debug("%s is made again: %s", name, err)
        return None


def make_record(table: np.ndarray, size: int, across: tuple[int, bool] | None = None) -> dict[str, Any]:
    """The record of a case.

    Args:
        table: (D, k) bool, which classes each slice shows.
        size: bytes of its slices.
        across: as :class:`~medsaga.data.case_slices.Slices` has it.
    """
    known = {"shape": list(table.shape), "classes": np.packbits(table).tobytes().hex(), "bytes": size}
    return known if across is None else {**known, "across": list(across)}


def table_of(record: dict[str, Any]) -> np.ndarray:
    """(D, k) bool: which classes each slice shows, as a record has it."""
    slices, classes = record["shape"]
    bits = np.frombuffer(bytes.fromhex(record["classes"]), np.uint8)
    return np.unpackbits(bits, count=slices * classes).reshape(slices, classes).astype(bool)


def at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function that waits for a file system with each item, several at a time."""
    items = list(items)
    size = -(-len(items) // _THREADS) or 1
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [result for part in pool.map(lambda part: [function(item) for item in part], parts) for result in part]


class Records:
    """The records of one preprocessing.

    Each record is a file of its own, so that several processes can add records and a killed process loses none. All of
    them are also kept in one index, because opening ten thousand files takes long on a network file system.

    Args:
        cache_dir: folder of the cache.
        made_by: the recipe of the preprocessing.

    Attributes:
        known: records by the name of their entry.
    """

    def __init__(self, cache_dir: Path, made_by: str) -> None:
        self.cache_dir = cache_dir
        self._index = cache_dir / f"{made_by}.index.json"
        self._indexed: dict[str, dict] = {}
        with suppress(OSError, ValueError):  # no index yet, or an unreadable one: the files hold all records
            self._indexed = json.loads(self._index.read_text())
        self.known: dict[str, dict] = {}

    def read(self, names: Iterable[str]) -> None:
        """Read the records of these entries into ``known``; those that cannot be read are left out."""
        self.known = {name: self._indexed.get(name) for name in names}
        unknown = [name for name, record in self.known.items() if record is None]
        self.known.update(zip(unknown, at_once(partial(read_record, self.cache_dir), unknown)))
        self.known = {name: record for name, record in self.known.items() if record is not None}

    def write(self, there: Container[str]) -> None:
        """Bring the index up to date.

        Args:
            there: names of all entries of the cache; the index forgets others.
        """
        if self.known.keys() <= self._indexed.keys():
            return
        content = {name: record for name, record in self._indexed.items() if name in there} | self.known
        with suppress(OSError):  # another user's cache, or a full disk: then the files are read again
            write_json(self._index, content)
