"""Numbers computed from images, kept on disk."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.served_model import image_key
from medsaga.files import write_json

__all__ = ["ScoreStore"]

logger = logging.getLogger(__name__)


class ScoreStore:
    """One JSON file per image: each kind of score with its value and weights, and which image file they are of.

    A value is forgotten when the image's file changes. Safe to use from several threads.

    Args:
        path: of an image's file; its folder is made when the first value is put in.
    """

    def __init__(self, path: Callable[[str], Path]) -> None:
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def get(self, image: str, kind: str, version: str) -> Any | None:
        """The value, None where there is none for these weights and the file as it is now."""
        with self._lock:
            entry = self._entry(image)
        found = entry.get("scores", {}).get(kind)
        if found is None or found["version"] != version:
            return None
        try:
            return found["value"] if image_key(entry["path"]) == entry["file"] else None
        except OSError:  # the file is gone
            return None

    def put(self, image: str, path: str, kind: str, version: str, value: Any) -> None:
        """Keep a value, in place of one of other weights.

        Args:
            image: its id in the datastore.
            path: its file or folder.
            kind: name of the score.
            version: of the weights.
            value: what JSON can hold.
        """
        with self._lock:
            entry = self._entry(image)
            file = image_key(path)
            scores = entry.get("scores", {}) if entry.get("file") == file else {}
            scores = {**scores, kind: {"version": version, "value": value}}
            self._entries[image] = {"path": str(path), "file": file, "scores": scores}
            write_json(self._path(image), self._entries[image])

    def _entry(self, image: str) -> dict[str, Any]:
        if image not in self._entries:
            path = self._path(image)
            try:
                content = json.loads(path.read_text()) if path.is_file() else {}
                if not isinstance(content, dict):
                    raise ValueError("it does not hold a JSON object")
            except (OSError, ValueError) as err:
                logger.warning("%s cannot be read (%s); its scores are computed again.", path, err)
                content = {}
            self._entries[image] = content
        return self._entries[image]
