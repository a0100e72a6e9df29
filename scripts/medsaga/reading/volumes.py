"""Volumes: NIfTI, NRRD and MetaImage."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np

from .image import Grid, ImageFile, ReadingError, check_size, reason
from .metaimage import metaimage_header
from .nifti import nifti_header
from .nrrd import nrrd_header
from .padding import replace_padding
from .stored import StoredVolume, check_stored, read_stored

__all__ = ["open_volume"]

_LOGGER = logging.getLogger(__name__)
_HEADERS = {
    (".nii", ".nii.gz"): nifti_header,
    (".nrrd", ".nhdr"): nrrd_header,
    (".mha", ".mhd"): metaimage_header,
}


def open_volume(path: Path, label: bool = False) -> ImageFile:
    """Read and check the header of a volume; one slice, (W, H), is a volume of one slice, (W, H, 1).

    Values keep their type, in the machine's byte order; rescaled ones are float32. :func:`replace_padding` is applied
    to images; what it replaced is known, and logged, only when the values are read.

    Args:
        path: .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd. Values in a file of their own must lie in the same folder.
        label: the values are class numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: naming the file and what is wrong with it.
    """
    read_header = next(read for suffixes, read in _HEADERS.items() if path.name.lower().endswith(suffixes))
    try:
        with np.errstate(all="ignore"):  # numbers that fit no type are refused below
            stored = read_header(path)
        shape = _volume_shape(path, stored.shape)
        check_size(path, shape)
        _check_type(path, stored.dtype)
        _check_affine(path, stored.affine)
        check_stored(path, stored)
    except (ReadingError, FileNotFoundError):
        raise
    except Exception as err:  # of a library that can make nothing of a damaged header
        raise ReadingError(f"{path}: its header cannot be read: {reason(err)}.") from err
    return ImageFile(Grid(shape, stored.affine), partial(_load, path, stored, shape, label), stored.notices)


def _volume_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Three axes: those of length 1 are left out at the end, or added."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        count = int(np.prod(shape[3:], dtype=object))
        raise ReadingError(
            f"{path}: {len(shape)}-D image with {count} volumes; save the one to segment as a file of its own."
        )
    if len(shape) < 2:
        raise ReadingError(f"{path}: its header gives the shape {shape}; expected an image of two or three axes.")
    return shape if len(shape) == 3 else (*shape, 1)


def _check_type(path: Path, dtype: np.dtype) -> None:
    if dtype.names:
        raise ReadingError(f"{path}: its voxels are colours (RGB); expected one value in each. Save it as grey values.")
    if dtype.kind == "c":
        raise ReadingError(f"{path}: its values are complex numbers; save the magnitude.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ReadingError(f"{path}: values of type {dtype}; expected whole numbers or floats of at most 64 bits.")


def _check_affine(path: Path, affine: np.ndarray) -> None:
    """Refuse an affine that cannot be inverted: its axes must span the space."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and volume > 1e-6):
        rows = "; ".join(" ".join(f"{v:g}" for v in row) for row in affine[:3])
        raise ReadingError(
            f"{path}: its affine ({rows}) has no inverse: a spacing of 0, or two axes in one direction. Save it again "
            "with the spacing and directions that it was acquired with."
        )


def _load(path: Path, stored: StoredVolume, shape: tuple[int, ...], label: bool) -> np.ndarray:
    try:
        check_stored(path, stored)
        values = read_stored(path, stored).reshape(shape, order="F")
    except (ReadingError, FileNotFoundError):
        raise
    except (OSError, MemoryError) as err:
        raise ReadingError(f"{path}: its values cannot be read: {reason(err)}.") from err
    if stored.slope is not None:
        values = values.astype(np.float32, order="F")
        with np.errstate(over="ignore", invalid="ignore"):
            values *= np.float32(stored.slope)
            values += np.float32(stored.intercept)
    if not label and values.dtype.kind in "if":
        values, notice = replace_padding(values, path)
        if notice:
            _LOGGER.warning(notice)
    return values
