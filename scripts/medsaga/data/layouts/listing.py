"""The images below a folder by name, each folder listed once and no header opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from medsaga.reading import ARRAYS, PICTURES, VOLUMES, suffix_of
from medsaga.reading.dicom import is_dicom

__all__ = ["Item", "list_items", "listed_once", "remembered", "walk_folders"]

_DICOM = (".dcm", ".dicom", ".ima")
_TRIED = 5  # files without suffix, a licence or version among them
_SYSTEM = {"thumbs.db", "desktop.ini", "dicomdir", "__macosx"}


class Item(NamedTuple):
    """An image or label: a file, or a folder with the slices of DICOM series.

    Attributes:
        key: path below the listed folder, with ``/``, without suffix; that of a folder with slices ends in ``/``.
        suffix: in lower case, with its dot.
        path: of the file or folder.
    """

    key: str
    suffix: str
    path: str


_T = TypeVar("_T")
_KNOWN: ContextVar[dict[tuple[str, str], Any] | None] = ContextVar("listings", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """Context in which each folder is listed once, however often it is asked for."""
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def remembered(what: str, folder: Path, make: Callable[[], _T]) -> _T:
    """What is found in a folder: made once in :func:`listed_once`, and at each call outside of it."""
    known = _KNOWN.get()
    if known is None:
        return make()
    key = what, str(folder)
    if key not in known:
        known[key] = make()
    return known[key]


def list_items(folder: Path) -> list[Item]:
    """All images and labels in a folder and the folders in it, in the order of their names.

    Files of formats that are read count; DICOM files count each by themselves, and together as their folder. Hidden
    files and those of operating systems are passed over.
    """
    return list(remembered("items", folder, lambda: _items(folder)))


def _items(folder: Path) -> list[Item]:
    items = []
    for place, below, files in walk_folders(folder):
        suffixes = {name: suffix_of(name) for name in files}
        bare = [name for name in files if not suffixes[name] and not os.path.splitext(name)[1][1:].isalpha()]
        # files without suffix are all DICOM or none: a folder of ten thousand is not opened ten thousand times
        if not any(is_dicom(Path(place, name)) for name in bare[:_TRIED]):
            bare = []
        slices = {*bare, *(name for name, suffix in suffixes.items() if suffix in _DICOM)}
        if slices and below:
            items.append(Item(f"{below}/", "", place))
        prefix = f"{below}/" if below else ""
        for name, suffix in suffixes.items():
            if suffix in (*VOLUMES, *PICTURES, *ARRAYS) or name in slices:
                items.append(Item(f"{prefix}{name[: len(name) - len(suffix)]}", suffix, os.path.join(place, name)))
    return items


def walk_folders(folder: Path) -> list[tuple[str, str, list[str]]]:
    """Path, path below ``folder`` (with ``/``) and names of the files of a folder and the folders in it, sorted."""
    return remembered("folders", folder, lambda: list(_walk(folder)))


def _walk(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    seen = {os.path.realpath(folder)}
    pending = [(str(folder), "")]
    while pending:
        place, below = pending.pop()
        folders, files = [], []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                    continue
                if not entry.is_dir():
                    files.append(entry.name)
                    continue
                if entry.is_symlink():  # which may lead back to where the walk has been
                    real = os.path.realpath(entry.path)
                    if real in seen or any(place.startswith(real) for place in seen):
                        continue
                    seen.add(real)
                folders.append(entry.name)
        yield place, below, sorted(files)
        for name in sorted(folders, reverse=True):
            pending.append((os.path.join(place, name), f"{below}/{name}" if below else name))
