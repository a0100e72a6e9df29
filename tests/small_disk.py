"""File systems that are full soon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["mounted"]


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path | None]:
    """A small file system of its own, or None without the right to mount one.

    Args:
        folder: where; made if need be.
        size: such as ``150m``; further options of tmpfs may follow after a comma.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
