"""The served weights and all earlier ones: kept with their scores, replaced as whole files, restored by name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from medsaga.files import replacing, write_json

__all__ = ["PUBLISHED", "Version", "Versions"]

_CLEARLY = 0.05  # of Dice
PUBLISHED = "published"  # version 0: the weights that training starts from


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass
class Version:
    """One set of weights.

    Args:
        file: its name in the bundle's ``models`` folder, ``model_v3.pt``.
        made: time, ISO 8601; now unless given.
        score: mean Dice over classes and held-back cases, None where there were none.
        served_score: the same of the weights that were served when it was made, on the same cases.
        trained_on: names of the cases it learnt from, those of the versions it started from included.
        held_back: names of the cases it was scored on.
        note: how it came to be, for people.
        prompt_score: mean Dice after a box, one click and three, on some of the held-back cases, or where there are
            none on some that it learnt from; None where this was not measured.
        published_prompt_score: the same of the published weights, on the same cases.
        class_scores: mean Dice over the held-back cases, by class; classes that no label of them shows are left out.
        score_error: standard error of ``score`` over the held-back cases; None with fewer than two.
    """

    file: str = ""
    made: str = field(default_factory=_now)
    score: float | None = None
    served_score: float | None = None
    trained_on: list[str] = field(default_factory=list)
    held_back: list[str] = field(default_factory=list)
    note: str = ""
    prompt_score: float | None = None
    published_prompt_score: float | None = None
    class_scores: dict[str, float] = field(default_factory=dict)
    score_error: float | None = None

    @property
    def follows_prompts(self) -> bool:
        """Whether prompts are answered by these weights, and not by the published ones.

        A version scores better on cases that it has learnt from than on others, so on those it must be better by 0.05.
        """
        if self.prompt_score is None or self.published_prompt_score is None:
            return True
        return self.prompt_score >= self.published_prompt_score + (0 if self.held_back else _CLEARLY)


class Versions:
    """The ``models`` folder of a bundle: ``model.pt`` is served, ``model_v1.pt``, ``model_v2.pt``, ... are kept.

    ``versions.json`` describes each of them. All files are written under a temporary name and renamed, so a server that
    reads or is killed meanwhile finds either the old file or the new one.

    Args:
        models_dir: the folder.
    """

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = Path(models_dir)
        self.models_dir.mkdir(parents=True, exist_ok=True)
        self.served_file = self.models_dir / "model.pt"
        self._index = self.models_dir / "versions.json"
        self._lock = FileLock(self.models_dir / ".versions.lock")

    def list(self) -> list[Version]:
        """All versions, the oldest first."""
        if not self._index.is_file():
            return []
        return [Version(**entry) for entry in json.loads(self._index.read_text())]

    def served(self) -> Version | None:
        """The version that is served; None where ``model.pt`` is absent or was put there by other means."""
        return next((v for v in self.list() if _same(self.models_dir / v.file, self.served_file)), None)

    def add(self, weights: Path, version_of: Version, serve: bool) -> Version:
        """Keep new weights, and serve them.

        Weights that are served but were put there by other means (a training on the command line) become a version
        first, so that they can be brought back.

        Args:
            weights: file of the new weights; it is moved.
            version_of: what is known of them; its ``file`` is chosen here.
            serve: replace the served weights.

        Returns:
            The version as it is kept.

        Raises:
            OSError: the disk is full; what was served is untouched.
        """
        with self._lock:
            versions = self._keep_found(self.list())
            version = replace(version_of, file=_next_name(versions))
            _place(weights, self.models_dir / version.file)
            self._write([*versions, version])
            weights.unlink(missing_ok=True)
            if serve:
                _place(self.models_dir / version.file, self.served_file)
        return version

    def serve(self, file: str) -> Version | None:
        """Bring a version back.

        Args:
            file: of the version; ``published`` for the weights that training starts from. Prompts are then answered as
                before any training, and nothing is segmented automatically.

        Raises:
            ValueError: with the known names, when there is none of this name.
        """
        with self._lock:
            if file == PUBLISHED:
                self._keep_found(self.list())
                self.served_file.unlink(missing_ok=True)
                return None
            known = {v.file: v for v in self.list()}
            if file not in known or not (self.models_dir / file).is_file():
                raise ValueError(f"{self.models_dir} has no version {file!r}, only {', '.join([PUBLISHED, *known])}.")
            _place(self.models_dir / file, self.served_file)
            return known[file]

    def _keep_found(self, versions: list[Version]) -> list[Version]:
        """The versions; served weights that were put there by other means are added as the last one."""
        if self.served_file.is_file() and self.served() is None:
            made = datetime.fromtimestamp(self.served_file.stat().st_mtime, timezone.utc)
            found = Version(_next_name(versions), made.isoformat(timespec="seconds"), note="found in models/")
            _place(self.served_file, self.models_dir / found.file)
            versions = [*versions, found]
            self._write(versions)
        return versions

    def _write(self, versions: list[Version]) -> None:
        write_json(self._index, [asdict(v) for v in versions])


def _next_name(versions: list[Version]) -> str:
    numbers = [int(m[1]) for v in versions if (m := re.fullmatch(r"model_v(\d+)\.pt", v.file))]
    return f"model_v{max(numbers, default=0) + 1}.pt"


def _place(source: Path, target: Path) -> None:
    """Copy a file, with its time, to another name at once. No link: copying over one would change the other."""
    with replacing(target) as temporary:
        shutil.copy2(source, temporary)


def _same(first: Path, second: Path) -> bool:
    if not (first.is_file() and second.is_file()):
        return False
    a, b = first.stat(), second.stat()
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
