"""A bundle's configs in a folder of their own, with other values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["copy_bundle"]


def copy_bundle(bundle: str | Path, target: Path, options: Mapping[str, Any]) -> Path:
    """Copy the configs, unless the target has them.

    Args:
        bundle: folder with ``configs``.
        target: folder for the copy.
        options: new values of the keys (``a#b`` for nested ones), in each config that has them.

    Returns:
        the target.
    """
    if (target / "configs").is_dir():
        return target
    work = target / "configs.new"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(Path(bundle) / "configs", work)
    for path in work.glob("*.json"):
        content = json.loads(path.read_text())
        for key, value in options.items():
            *parents, last = key.split("#")
            place = content
            for parent in parents:
                place = place.get(parent, {})
            if last in place:
                place[last] = value
        path.write_text(json.dumps(content, indent=4))
    work.rename(target / "configs")
    return target
