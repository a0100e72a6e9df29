"""The files of an examination with one file for each sequence, recognised by the ends of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .names import is_series, name_without_suffix, suffix_of

__all__ = ["sequence_files", "sequence_name"]


def sequence_files(path: str | Path, sequences: Sequence[str]) -> list[str]:
    """Paths of all sequences, from the path of the first: same folder, suffix and name except for its end.

    Args:
        path: file or folder of the first sequence, whose name without suffix ends with ``sequences[0]``.
        sequences: the ends of the names, such as ``("_0000", "_0001")`` or ``("_dwi", "_adc")``.

    Returns:
        one path a sequence, in their order, the first as it was given.

    Raises:
        ValueError: the name has another end.
        FileNotFoundError: naming the file of a sequence that is not there.
    """
    path = Path(path)
    stem = sequence_name(path, sequences)
    files = [str(path)]
    for end in sequences[1:]:
        file = path.with_name(f"{stem}{end}{path.name[len(name_without_suffix(path)) :]}")
        if not file.exists() and not is_series(file):
            raise FileNotFoundError(
                f"{file}: there is no such file or folder. It should hold the sequence {end!r} of {path}, in the same "
                "folder."
            )
        files.append(str(file))
    return files


def sequence_name(path: str | Path, sequences: Sequence[str]) -> str:
    """The common name of an examination's sequences: the first one's name without suffix and end.

    Raises:
        ValueError: the name does not end with ``sequences[0]``.
    """
    name = name_without_suffix(path)
    if not name.endswith(sequences[0]):
        suffix = suffix_of(path)
        raise ValueError(
            f"{path}: give an image of {len(sequences)} sequences by the file of the first; its name must end with "
            f"{sequences[0] + suffix!r} (sequences of the bundle: {', '.join(sequences)})."
        )
    return name[: len(name) - len(sequences[0])]
