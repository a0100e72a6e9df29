"""Images in a folder and the folders in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from medsaga.reading import ARRAYS, PICTURES, VOLUMES, name_without_suffix, suffix_of
from medsaga.reading.dicom import is_dicom, list_series

__all__ = ["below", "check_names", "find_images", "some", "walk_images"]

logger = logging.getLogger(__name__)

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_BESIDE = (".json", ".csv", ".tsv", ".raw", ".zraw", ".bval", ".bvec")  # files that belong to images


def find_images(folder: str | Path) -> list[dict[str, str]]:
    """Images of a folder and of the folders in it, in the order of their paths.

    A file with a suffix of a volume or picture is an image. So is each series of DICOM files in a folder, whatever the
    files are called. The path of a series is ``FOLDER``; where the folder holds several, it is
    ``FOLDER/SERIES_INSTANCE_UID``, or the file itself of a series with one file. Hidden files and folders are skipped.
    Files of other kinds are skipped with a warning.

    Returns:
        ``[{"image": path, "name": name}]``. The name is the path below ``folder`` without suffix, with ``_`` for ``/``;
        a series in ``folder`` itself has the name of that folder.

    Raises:
        ValueError: two images that would have the same name.
    """
    root = Path(folder)
    passed_over: list[Path] = []
    images = list(walk_images(root, set(), passed_over))
    if not images and any(is_dicom(path) for path in passed_over if path.parent == root):
        images = [root]  # reading it says what it holds instead of images
    elif passed_over:
        logger.warning(
            f"{len(passed_over)} files in {root} are skipped, because they are not images of a format that can be "
            f"read: {some([str(path.relative_to(root)) for path in passed_over])}."
        )
    cases = [{"image": str(image), "name": _name(image, root)} for image in images]
    check_names(cases)
    return cases


def check_names(cases: Sequence[dict[str, str]]) -> None:
    """Refuse cases with the same name, because their outputs would overwrite one another.

    Args:
        cases: with ``image`` and ``name``. Names that differ only in upper and lower case count as equal, because on
            some disks they are.

    Raises:
        ValueError: naming both files.
    """
    seen: dict[str, str] = {}
    for case in cases:
        other = seen.setdefault(case["name"].casefold(), case["image"])
        if other != case["image"]:
            raise ValueError(
                f"{other} and {case['image']} have the same name {case['name']!r}: the output of one would overwrite "
                "the output of the other. Rename one, or put them into two folders and segment one after the other."
            )


def below(root: Path, file: str) -> str:
    """A path as a table of the files in a folder shows it."""
    path = Path(file)
    return str(path.relative_to(root)) if path != root and path.is_relative_to(root) else file


def some(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def walk_images(folder: Path, seen: set[Path], passed_over: list[Path]) -> Iterator[Path]:
    """Images in a folder and the folders in it.

    Args:
        folder: to walk through.
        seen: folders where the walk has been.
        passed_over: gets the files that are not images.
    """
    real = folder.resolve()
    if real in seen:  # a link back to where the walk has been
        return
    seen.add(real)
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    others = []
    for path in entries:
        if path.is_dir():
            yield from walk_images(path, seen, passed_over)
        elif suffix_of(path) == ".seg.nrrd":  # Slicer's segmentation beside its image
            passed_over.append(path)
        elif suffix_of(path) in (*VOLUMES, *PICTURES, *ARRAYS):
            yield path
        elif path.suffix.lower() not in _BESIDE:
            others.append(path)
    if any(is_dicom(path) for path in others):
        found = list_series(folder)
        passed_over += [] if found else others
        for series in found:
            # an X-ray or multi-frame volume among others has the name of its file, which says more than a UID
            alone = len(series.files) == 1 and series.path != folder
            yield series.files[0] if alone else series.path
        return
    for path in others:
        if suffix_of(path) in _DICOM_SUFFIXES:  # damaged: reading it says how
            yield path
        else:
            passed_over.append(path)


def _name(image: Path, root: Path) -> str:
    if image == root:
        return root.resolve().name
    return name_without_suffix("_".join(image.relative_to(root).parts))
