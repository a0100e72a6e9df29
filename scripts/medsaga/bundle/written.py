"""Written files of a bundle, which are not overwritten once somebody has edited them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from medsaga.files import replacing, write_json

__all__ = ["WrittenFiles"]


class WrittenFiles:
    """Files in a folder that are written from something else, and their checksums as they were written.

    The checksums show which files were edited since, even after the source of the files has changed.

    Args:
        folder: of the bundle.
        record: name of the file of checksums in it.
        files: texts by path in the folder.

    Attributes:
        changed: paths of the files whose content is not the right one.
        edited: those of them that were edited since they were written, or were never written.
    """

    def __init__(self, folder: Path, record: str, files: Mapping[str, str]) -> None:
        self.folder, self.files = folder, files
        self._record = folder / record
        self._before = {name: _content(folder / name) for name in files}
        self._checksums = _read(self._record)
        self.changed = [name for name, text in files.items() if self._before[name] != text.encode()]
        self.edited = [
            folder / name
            for name in self.changed
            if self._before[name] is not None and _checksum(self._before[name]) != self._checksums.get(name)
        ]

    def refuse_edited(self, instead: str) -> None:
        """
        Args:
            instead: what to do, for the error.

        Raises:
            FileExistsError: files that were edited, each by its path.
        """
        if self.edited:
            raise FileExistsError(
                f"These files were edited after they were written, or were written by hand: "
                f"{', '.join(map(str, self.edited))}. Nothing was written. {instead}"
            )

    def write(self) -> None:
        """Write the files that have changed, each whole or not at all."""
        for name in self.changed:
            _write(self.folder / name, self.files[name].encode())

    def write_back(self) -> None:
        """Restore the earlier content of the files that were written."""
        for name in self.changed:
            if self._before[name] is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                _write(self.folder / name, self._before[name])

    def record(self) -> None:
        """Remember the files as they are written now."""
        checksums = {name: _checksum(text.encode()) for name, text in sorted(self.files.items())}
        if checksums != self._checksums:
            write_json(self._record, checksums)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(record: Path) -> dict[str, str]:
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError):  # then every file whose content is not the right one counts as edited
        return {}
    return content if isinstance(content, dict) else {}
