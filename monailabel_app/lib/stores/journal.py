"""How a store's list and files change together: one writer at a time, each file whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel

from lib.private import Private
from lib.stores.info import read_info
from medsaga.failures import nothing_can_be_written
from medsaga.files import replacing

__all__ = ["Journal", "enough_disk", "to_disk"]

logger = logging.getLogger(__name__)


@contextmanager
def enough_disk(what: str) -> Iterator[None]:
    """Answer 507 where the disk is full.

    Args:
        what: was to be written, for the error.

    Raises:
        HTTPException: 507.
    """
    try:
        yield
    except OSError as err:
        if not nothing_can_be_written(err):
            raise
        raise HTTPException(
            507, f"No space left on the server's disk for {what}. It was not saved; what was saved before is unchanged."
        ) from err


class Journal:
    """The list of images and labels on disk, and the steps by which files and list change together.

    Args:
        path: of the list, ``datastore_v2.json``.
        private: the store's own folder.
    """

    def __init__(self, path: Path, private: Private) -> None:
        self.path = path
        self.private = private
        self._threads = threading.RLock()
        self._processes = FileLock(path.with_name(".lock"))
        self._seen = 0
        private.prepare()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive access among the threads of this process and the processes that use the folder."""
        with self._threads, self._processes:
            yield

    @contextmanager
    def recording(self, new: LocalDatastoreModel) -> Iterator[None]:
        """Write the list.

        The body of the context runs between writing and renaming, so it runs only if there is space for the list.
        """
        with replacing(self.path) as staged:
            staged.write_text(json.dumps(new.model_dump(exclude={"base_path"}), indent=2, allow_nan=False))
            to_disk(staged)
            yield
        self._seen = self.path.stat().st_mtime_ns

    def read(self, known: LocalDatastoreModel) -> LocalDatastoreModel:
        """The list that another process has written; ``known`` if none has.

        Parts that cannot be read are kept in a file of their own and named in the log; the rest is used.
        """
        with self.locked():
            if not self.path.exists() or self.path.stat().st_mtime_ns == self._seen:
                return known
            damaged: dict[str, Any] = {}
            try:
                store = _parsed(json.loads(self.path.read_text()), damaged)
            except (ValueError, RecursionError) as err:
                aside = self.private.aside(self.path.name)
                os.replace(self.path, aside)
                logger.error(
                    "%s cannot be read (%s). It is kept as %s; images and labels are listed anew, but the notes about "
                    "them are missing.",
                    self.path, str(err)[:300], aside,
                )  # fmt: skip
                return known
            store.base_path = known.base_path
            self._seen = self.path.stat().st_mtime_ns
            if damaged:
                aside = self.private.aside("json")
                aside.write_text(json.dumps(damaged))
                logger.error("%s: %s cannot be read; they are kept in %s.", self.path, ", ".join(damaged)[:2000], aside)
                with self.recording(store):
                    pass
            return store


def _parsed(content: Any, damaged: dict[str, Any]) -> LocalDatastoreModel:
    """The list, without what cannot be read, which goes to ``damaged``."""
    if not isinstance(content, dict) or not isinstance(content.get("objects", {}), dict):
        raise ValueError("it must be an object with the key objects")
    store = LocalDatastoreModel.model_validate({**content, "objects": {}})
    for key, entry in content.get("objects", {}).items():
        entry = entry if isinstance(entry, dict) else {"image": entry}
        image = _data(entry.get("image"), key, damaged)
        labels = entry.get("labels", {})
        if image is None or not isinstance(labels, dict):  # its files are found again
            damaged[key] = entry
            continue
        read = {tag: _data(label, f"{key}, label {tag}", damaged) for tag, label in labels.items()}
        store.objects[key] = ImageLabelModel(image=image, labels={tag: v for tag, v in read.items() if v is not None})
    return store


def _data(content: Any, what: str, damaged: dict[str, Any]) -> DataModel | None:
    """An image or label without those of its notes that cannot be read; None where it names no file."""
    info = content.get("info", {}) if isinstance(content, dict) else None
    ext = content.get("ext") if isinstance(content, dict) else None
    if not isinstance(info, dict) or not isinstance(ext, str) or "/" in ext or "\0" in ext:
        damaged[what] = content
        return None
    notes: dict[str, Any] = {}
    for key, value in info.items():
        try:
            notes.update(read_info({key: value}))
        except ValueError as err:
            damaged[f"{what}, {key}"] = {"value": value, "why": str(err)}
    return DataModel(info=notes, ext=ext)


def to_disk(path: Path) -> None:
    """Wait until a file has reached the disk: quotas and network file systems tell of missing space only then."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
