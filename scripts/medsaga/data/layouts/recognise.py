"""Which layout a folder has."""

from __future__ import annotations

from pathlib import Path

from .array_files import find_array_files
from .dicom import find_dicom
from .find_bids import find_bids
from .find_decathlon import find_decathlon
from .find_named import find_named_files
from .find_table import find_table
from .layout import Layout, OtherLayoutError
from .listing import listed_once
from .nnunet import find_nnunet

__all__ = ["UnknownLayoutError", "recognise"]


class UnknownLayoutError(ValueError):
    """A folder is of no layout that is known."""


# in this order: an index says more than names, and names more than contents
_LAYOUTS = (
    ("Medical Segmentation Decathlon", find_decathlon),
    ("nnU-Net", find_nnunet),
    ("Brain Imaging Data Structure", find_bids),
    ("table", find_table),
    ("array files", find_array_files),
    ("DICOM", find_dicom),
    ("names of files", find_named_files),
)


def recognise(folder: str | Path, labels: str | Path | None = None) -> Layout:
    """The layout of a folder of images and labels, and its cases.

    Args:
        folder: of the data set; of its images where ``labels`` is given; or a table of images and labels.
        labels: folder of the labels, where it is another.

    Raises:
        FileNotFoundError: no such folder, or it lacks what its layout asks for.
        UnknownLayoutError: it is of no layout that is known, with what it lacks for each.
        ValueError: its index cannot be read, or it cannot be said which of several files is meant.
    """
    root = Path(folder).expanduser()
    below = None if labels is None else Path(labels).expanduser()
    for path, option in ((root, "--data"), (below, "--labels")):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path.absolute()} does not exist; {option} must name a folder that exists.")
    lacks: list[tuple[str, str]] = []
    with listed_once():
        for name, find in _LAYOUTS:
            try:
                return find(root, below)
            except OtherLayoutError as err:
                lacks.append((name, str(err)))
    told = "\n".join(f"  {name}: lacks {lack}" for name, lack in sorted(lacks, key=lambda pair: len(pair[1])))
    raise UnknownLayoutError(
        f"{root}: images and their labels are not found. Name the folder of the labels with --labels, or write a table "
        f"cases.csv with the columns image and label. What is missing for each layout:\n{told}"
    )
