"""The name of a case: one rule for datalists, cache, outputs and app."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ARRAYS", "PICTURES", "SUFFIXES", "VOLUMES", "is_series", "name_without_suffix", "suffix_of"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # without a place in space
JPEGS = (".jpg", ".jpeg")  # compression changes their values at the edges of a mask
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd")

ARRAYS = (".npz", ".h5", ".npy.h5")  # an image and its label in one file

# known suffixes only: everything else after a dot is part of a name (A.Huber, DICOM's 1.2.840.113619.2.55.10)
SUFFIXES = tuple(sorted((*PICTURES, *VOLUMES, *ARRAYS, ".dcm", ".dicom", ".ima", ".gz"), key=len)[::-1])


def suffix_of(path: str | Path) -> str:
    """The file's suffix in lower case, ``.nii.gz`` and ``.seg.nrrd`` whole; empty for a name without a known one."""
    name = Path(path).name
    lower = name.lower()
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix) and len(lower) > len(suffix)), "")


def name_without_suffix(path: str | Path) -> str:
    """Name of a file or folder without ``.nii.gz``, ``.seg.nrrd``, ``.png``, ``.dcm`` and the like.

    Only suffixes of formats that are read count: names with dots in them (``A.Huber``, DICOM's UIDs) are kept whole.
    """
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name))]


def is_series(path: str | Path) -> bool:
    """Whether a path names one DICOM series of a folder: ``FOLDER/SERIES_INSTANCE_UID``, where no such file is."""
    path = Path(path)
    return re.fullmatch(r"\d+(\.\d+)+", path.name) is not None and not path.exists() and path.parent.is_dir()
