"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

__all__ = ["write_json"]


def write_json(path: Path, content: Any) -> None:
    """Write JSON under another name and rename it, so that no reader and no full disk ever leaves half a file.

    Args:
        path: of the file; its folder is made.
        content: what ``json`` can write; what it cannot (numpy's numbers) as a float.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(json.dumps(content, indent=1, default=float) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
