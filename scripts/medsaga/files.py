"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["remove_older", "replacing", "write_json"]

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, suffix: str = "writing") -> Iterator[Path]:
    """Write a file under another name and rename it, so that no reader and no full disk ever leaves half a file.

    Args:
        path: of the file; its folder is made.
        suffix: of the other name. With the default, what a killed process leaves is written over by the next; writers
            that may come at the same time need different ones.

    Returns:
        Context with the path to write to. When it ends in an exception, what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as a whole or not at all, also where others write the same file.

    Args:
        path: of the file; its folder is made.
        content: what ``json`` can write; what it cannot (numpy's numbers) as a float.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    with replacing(path, uuid.uuid4().hex) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=float) + "\n")


def remove_older(folder: str | Path, seconds: float) -> int:
    """Remove from a folder what requests or killed processes have left in it.

    Args:
        folder: of nothing but files that are being written or read.
        seconds: since the last change, after which nobody can be using a file or folder any more.

    Returns:
        how many were removed.
    """
    count = 0
    for path in Path(folder).iterdir():
        try:
            if path.stat().st_mtime + seconds < time.time():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                count += 1
        except OSError as err:  # done and removed meanwhile
            logger.debug("%s was not removed: %s", path, err)
    return count
