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

    A fourth axis, the fifth of a NIfTI of vectors, and several values in each voxel are channels: the sequences of one
    examination, time points, or the classes of a one-hot label.

    Values keep their type, in the machine's byte order; rescaled ones are float32. :func:`replace_padding` is applied
    to images; what it replaces is known and logged only when the values are read.

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
        shape, channels, axis = _layout(path, stored)
        check_size(path, stored.shape)
        _check_type(path, stored.dtype)
        _check_affine(path, stored.affine)
        check_stored(path, stored)
    except (ReadingError, FileNotFoundError):
        raise
    except Exception as err:  # of a library that cannot read a damaged header
        raise ReadingError(f"{path}: its header cannot be read: {reason(err)}.") from err
    values_shape = (*shape, channels) if channels > 1 else shape
    load = partial(_load, path, stored, axis, values_shape, label)
    return ImageFile(Grid(shape, stored.affine, channels), load, stored.notices)


def _layout(path: Path, stored: StoredVolume) -> tuple[tuple[int, int, int], int, int | None]:
    """Shape of the volume, number of channels, and the channels' axis in the file: beyond the third, of length > 1."""
    shape, axis = stored.shape, stored.channel_axis
    spatial = [i for i in range(len(shape)) if i != axis]
    beyond = [i for i in spatial[3:] if shape[i] != 1]
    if len(beyond) + (axis is not None) > 1:
        raise ReadingError(
            f"{path}: its header gives the shape {shape}; at most one axis, of sequences or classes, may follow the "
            "three axes in space. Save what is to be segmented as a file of its own."
        )
    if len(spatial) < 2:
        raise ReadingError(f"{path}: its header gives the shape {shape}; expected an image of two or three axes.")
    axis = beyond[0] if beyond else axis
    columns, rows, slices = ([shape[i] for i in spatial[:3]] + [1])[:3]
    return (columns, rows, slices), 1 if axis is None else shape[axis], axis


def _check_type(path: Path, dtype: np.dtype) -> None:
    if dtype.names:
        raise ReadingError(f"{path}: its voxels are colours (RGB); expected one value in each. Save it as grey values.")
    if dtype.kind == "c":
        raise ReadingError(f"{path}: its values are complex numbers; save the magnitude.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ReadingError(
            f"{path}: its values are of type {dtype}; expected whole numbers or floats of at most 64 bits."
        )


def _check_affine(path: Path, affine: np.ndarray) -> None:
    """Refuse an affine that cannot be inverted: its axes must span the space."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and volume > 1e-6):
        rows = "; ".join(" ".join(f"{v:g}" for v in row) for row in affine[:3])
        raise ReadingError(
            f"{path}: its affine ({rows}) has no inverse: a spacing is 0, two axes have one direction, or a "
            "number is not finite. Save it again with the spacing and directions that it was acquired with."
        )


def _load(
    path: Path, stored: StoredVolume, channel_axis: int | None, shape: tuple[int, ...], label: bool
) -> np.ndarray:
    try:
        check_stored(path, stored)
        values = read_stored(path, stored)
        if channel_axis is not None:
            values = np.moveaxis(values, channel_axis, -1)
        values = values.reshape(shape, order="F")
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
        for channel in np.moveaxis(values, -1, 0) if values.ndim > 3 else [values]:
            _, notice = replace_padding(channel, path)  # in place
            if notice:
                _LOGGER.warning(notice)
    return values
