"""The folder ``.medsaga`` of a store: all that is not an image or a label in use."""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from medsaga.files import remove_older

__all__ = ["Private"]

_LONGEST = 120  # bytes of a name's part that comes from an image's id; file systems take 255 for the whole
_LEFT_OVER = 24 * 3600  # seconds after which a file that was never finished is deleted


class Private:
    """Every path under ``.medsaga``, so that everything written about an image is also removed with it.

    Args:
        studies: the store's folder.

    Attributes:
        folder: ``.medsaga`` itself.
        incoming: files that are being written.
        set_aside: what could not be read of the list of images.
        scores: a line for each submitted label.
    """

    def __init__(self, studies: str | Path) -> None:
        self.folder = Path(studies) / ".medsaga"
        self.incoming = self.folder / "incoming"
        self.set_aside = self.folder / "set_aside"
        self.scores = self.folder / "scores.jsonl"

    def prepare(self) -> None:
        """Make the folder for files that are being written, and remove what killed processes have left in it."""
        self.incoming.mkdir(parents=True, exist_ok=True)
        remove_older(self.incoming, _LEFT_OVER)

    def staging(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for files that are being written, on the store's own disk."""
        return tempfile.TemporaryDirectory(dir=self.incoming)

    def aside(self, name: str) -> Path:
        """A new file to keep something in that cannot be read."""
        self.set_aside.mkdir(parents=True, exist_ok=True)
        return self.set_aside / f"{time.time_ns()}.{name}"

    def image_scores(self, bundle: str, image: str) -> Path:
        """What a bundle's strategies know of an image."""
        return self.folder / bundle / f"{_short(quote(image, safe=''))}.json"

    def former_label(self, image: str, tag: str, saved: float, annotator: str, ext: str) -> tuple[Path, Path]:
        """New files of the history: a label that is replaced now, and its info.

        Args:
            image: its id.
            tag: the label's.
            saved: when the label was saved, seconds since 1970.
            annotator: who made it.
            ext: suffix of its file.
        """
        folder = self.folder / "history" / tag
        folder.mkdir(parents=True, exist_ok=True)
        when = datetime.fromtimestamp(saved, timezone.utc)
        who = re.sub(r"[^\w-]", "_", annotator).encode()[:40].decode(errors="ignore")
        # the time of replacing makes it unique, and its order is that of the history
        stem = f"{_short(image)}.{time.time_ns()}.{when:%Y%m%dT%H%M%SZ}.{who}"
        return folder / f"{stem}{ext}", folder / f"{stem}.json"

    def of_image(self, image: str) -> list[Path]:
        """All files of an image: former labels, and what strategies know of it."""
        # the pattern has all parts that former_label adds: files of an image with this name and a suffix do not match
        history = re.compile(re.escape(_short(image)) + r"\.\d{19}\.\d{8}T\d{6}Z\..*")
        files = [file for file in self.folder.glob("history/*/*") if history.fullmatch(file.name)]
        return [*files, *self.folder.glob(f"*/{self.image_scores('*', image).name}")]


def _short(name: str) -> str:
    """The name, or its start and its checksum where it is long."""
    if len(name.encode()) <= _LONGEST:
        return name
    return f"{name.encode()[:80].decode(errors='ignore')}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
