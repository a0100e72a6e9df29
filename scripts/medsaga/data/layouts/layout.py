"""What a folder is found to be: a layout, its cases, and the component of a config that lists them again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsaga.bundle.literals import literal

__all__ = ["Case", "Layout", "OtherLayoutError", "channels_in", "existing_folder", "inside", "layout_of", "patient_in"]

Case = dict[str, Any]


class OtherLayoutError(Exception):
    """A folder is not of the layout that was looked for; the message says what it lacks."""


@dataclass(frozen=True)
class Layout:
    """How a folder lays out its images and labels.

    Attributes:
        name: of the layout, ``nnU-Net v2``.
        datalist: component of a config that gives the cases, without its ``dataset_dir``: plain, literal arguments.
        cases: what it gives.
        classes: value in the label by name of the class, background left out, as an index or names of files say; None
            where nothing says it.
        channel_names: of the image, one a sequence.
        sequences: ends of the names of the sequences' files, without suffix; None where an image is one file.
        modality: ``CT``, ``MR``, ... as an index says; empty where none does.
        test_images: folder of images without labels, below the data folder; empty where there is none.
        notes: what was left out and what was guessed, a sentence each.
        about: name, description, licence and reference as an index says; free text.
    """

    name: str
    datalist: dict[str, Any]
    cases: list[Case]
    classes: dict[str, int] | None = None
    channel_names: tuple[str, ...] = ("image",)
    sequences: tuple[str, ...] | None = None
    modality: str = ""
    test_images: str = ""
    notes: tuple[str, ...] = ()
    about: dict[str, str] = field(default_factory=dict)


def layout_of(
    name: str,
    function: Callable[..., list[Case]],
    dataset_dir: str | Path,
    arguments: Mapping[str, Any],
    cases: list[Case] | None = None,
    **said: Any,
) -> Layout:
    """A layout with the cases that its function lists.

    Args:
        name: of the layout.
        function: of :mod:`medsaga.data`, called with ``dataset_dir`` and the arguments.
        dataset_dir: the folder.
        arguments: plain values, those that differ from the function's defaults.
        cases: what the function has given with these arguments, where it has been called.
        said: further attributes of the :class:`Layout`.

    Raises:
        ValueError: an argument that MONAI would take for something else than text.
    """
    for key, value in arguments.items():
        for text in value if isinstance(value, (list, tuple)) else [value]:
            literal(text, f"{key} of the folder's layout")
    datalist = {"_target_": f"medsaga.data.{function.__name__}", **arguments}
    return Layout(name, datalist, function(dataset_dir, **arguments) if cases is None else cases, **said)


def existing_folder(path: str | Path, what: str) -> Path:
    """A folder that is there.

    Raises:
        FileNotFoundError: it is not.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No {what} at {folder.absolute()}. Name the folder of the images with --dataset_dir FOLDER."
        )
    return folder


def inside(folder: Path, path: Any) -> Path:
    """A path that an index names, in the folder of the index; Windows' backslashes separate, too.

    Raises:
        ValueError: it leads out of the folder, or is no path.
    """
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ValueError(f"{path!r} is not the path of a file")
    relative = Path(path.strip().replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or re.match(r"[A-Za-z]:", path):
        raise ValueError(f"{path!r} lies outside of {folder}")
    return folder / relative


def patient_in(name: str, pattern: str, path: Path | None = None) -> str:
    """The patient in a case's name.

    Args:
        name: of the case.
        path: of its image, for errors.
        pattern: regular expression whose first group, matched at the start of the name, is the patient.

    Raises:
        ValueError: it does not match, or is no such expression.
    """
    try:
        match = re.match(pattern, name)
        found = match and match.group(1)
    except (re.error, IndexError) as err:
        raise ValueError(f"patient is {pattern!r}; it must be a regular expression with one group: {err}.") from err
    if not found:
        raise ValueError(f"The pattern {pattern!r} finds no patient in the name of {path or name}.")
    return found


def channels_in(value: Any) -> tuple[str, ...]:
    """Names of channels in an index: ``{"0": "FLAIR", "1": "T1w"}`` or a list; one that is alone is ``image``."""
    if isinstance(value, Mapping):
        try:
            names = [str(value[key]) for key in sorted(value, key=int)]
        except (TypeError, ValueError):
            names = [str(name) for name in value.values()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        names = [str(name) for name in value]
    else:
        return ("image",)
    unique = [name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names)]
    return tuple(unique) if len(unique) > 1 else ("image",)
