"""Cases that failed: their file and the cause in one line, and a list of them for people and spreadsheets."""

from __future__ import annotations

import csv
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .files import replacing

__all__ = [
    "CasesFailedError",
    "Failure",
    "failure_of",
    "listed",
    "nothing_can_be_written",
    "root_cause",
    "write_failures",
]

# how the messages begin in which MONAI wraps another error
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "Component type", "applying transform")

# errors whose text says enough without their name
_PLAIN = (ValueError, RuntimeError, OSError)

_LONGEST = 500  # letters of several lines that are joined to one
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Failure(NamedTuple):
    """A file that cannot be used, and why, in one line."""

    file: str
    cause: str

    def __str__(self) -> str:
        return f"{self.file}: {self.cause}"


class CasesFailedError(RuntimeError):
    """Some cases failed; the others are done. The text is all that a user needs, without a traceback."""


def root_cause(error: BaseException) -> BaseException:
    """The error inside what MONAI has wrapped around it."""
    while error.__cause__ is not None and str(error).lstrip().startswith(_WRAPPERS):
        error = error.__cause__
    return error


def failure_of(error: BaseException, files: Sequence[str], what: str) -> Failure:
    """What went wrong with a case.

    Args:
        error: as it was raised, wrapped or not.
        files: paths of the case's image and, where it has one, its label. The one that the error names is at fault.
        what: what could not be done with the case, such as ``"cannot be read"``, for an error that names neither file.
    """
    cause = root_cause(error)
    lines = [" ".join(line.split()) for line in str(cause).splitlines() if line.strip()]
    text = " ".join(lines)
    if len(text) > _LONGEST and lines:
        text = lines[0]
    named = [file for file in files if file in text]
    if named:
        file = min(named, key=lambda name: (text.index(name), -len(name)))
        return Failure(file, text.removeprefix(f"{file}: "))
    if not isinstance(cause, _PLAIN) or not text:
        text = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    label = f", or its label {files[1]}" if len(files) > 1 else ""
    return Failure(files[0], f"{what}{label}: {text}")


def nothing_can_be_written(error: BaseException | None) -> bool:
    """Whether an error says that the disk is full or read-only: then all further cases fail, too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def listed(failures: Sequence[Failure], shown: int = 10) -> str:
    """A line for each of the first failures, and how many more there are."""
    lines = [str(failure) for failure in failures[:shown]]
    if len(failures) > shown:
        lines.append(f"... and {len(failures) - shown} more")
    return "\n".join(lines)


def write_failures(path: str | Path, failures: Sequence[Failure]) -> None:
    """Write all failures as CSV with the columns ``file`` and ``cause``; without any the file is removed.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    if not failures:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Failure._fields)
        writer.writerows(failures)
