"""Headers of NRRD files (.nrrd, .seg.nrrd, .nhdr), by pynrrd."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from .image import ReadingError
from .stored import StoredVolume, data_file_beside

__all__ = ["nrrd_header"]

_MOST_HEADER = 2**22  # bytes; a .seg.nrrd takes 1 kB for each segment
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names}
_COMPRESSIONS = {"raw": "", "gzip": "zlib", "gz": "zlib", "bzip2": "bz2", "bz2": "bz2"}
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "": (-1, -1, 1),  # as ITK takes it
}
_NO_CHANNELS = ("complex", "matrix", "quaternion")  # parts of names of kinds whose values have no meaning one by one
_SPATIAL_KINDS = ("domain", "space", "???", "none", "")


def nrrd_header(path: Path) -> StoredVolume:
    """Read the header.

    Raises:
        ReadingError: what it says cannot be used.
        Exception: pynrrd's, where it cannot read the header.
    """
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read(_MOST_HEADER))
    if stream.getvalue()[:4] != b"NRRD":
        raise ReadingError(f"{path}: it does not begin like an NRRD file; it is of another format, or damaged.")
    header = nrrd.read_header(stream)
    missing = [key for key in ("type", "sizes", "encoding") if key not in header]
    if missing:
        raise ReadingError(f"{path}: its header lacks {', '.join(missing)}.")
    sizes = tuple(int(n) for n in header["sizes"])
    if header.get("dimension", len(sizes)) != len(sizes):
        raise ReadingError(f"{path}: its header gives {len(sizes)} sizes for {header['dimension']} axes.")
    affine, axes, notices = _affine(path, header, sizes)
    channels = _channel_axis(path, header, sizes, axes)
    kept = sorted([*axes, *([] if channels is None else [channels])])
    dtype = _dtype(path, header)
    compression = _COMPRESSIONS.get(str(header["encoding"]).lower())
    if compression is None:
        raise ReadingError(f"{path}: its encoding is {header['encoding']!r}; save it as raw or gzip.")
    if header.get("line skip", header.get("lineskip", 0)):
        raise ReadingError(f"{path}: its header skips lines of the data file (line skip); save it as one .nrrd file.")
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if skip < -1 or (skip == -1 and compression):
        raise ReadingError(f"{path}: it skips {skip} bytes (byte skip); expected 0 or more, or -1 for raw values.")
    data_file, start = path, stream.tell()
    if (name := header.get("data file", header.get("datafile"))) is not None:
        data_file, start = data_file_beside(path, str(name)), 0
    return StoredVolume(
        shape=tuple(sizes[axis] for axis in kept),
        dtype=dtype,
        affine=affine,
        file=data_file,
        start=None if skip == -1 else start,
        skip=max(skip, 0),
        compression=compression,
        channel_axis=None if channels is None else kept.index(channels),
        notices=notices,
    )


def _dtype(path: Path, header: Mapping[str, Any]) -> np.dtype:
    name = str(header["type"]).lower()
    if name not in _DTYPES:
        raise ReadingError(f"{path}: its values are of type {name!r}; expected whole numbers, float or double.")
    dtype = np.dtype(_DTYPES[name])
    endian = str(header.get("endian", "little" if dtype.itemsize == 1 else "")).lower()
    if endian not in ("little", "big"):
        raise ReadingError(f"{path}: its header gives no byte order; expected 'endian: little' or 'endian: big'.")
    return dtype.newbyteorder({"little": "<", "big": ">"}[endian])


def _affine(
    path: Path, header: Mapping[str, Any], sizes: tuple[int, ...]
) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """The affine, which of the file's axes are axes in space, and notices."""
    _refuse_units(path, header)
    space = str(header.get("space", "")).lower()
    if space not in _TO_RAS:
        raise ReadingError(
            f"{path}: its space is {space!r}; expected right-anterior-superior, left-anterior-superior or "
            "left-posterior-superior."
        )
    notices = []
    kinds = _kinds(header, sizes)
    directions = header.get("space directions")
    if directions is None:
        axes = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS or sizes[axis] == 1]
        spacings = np.asarray(header.get("spacings", np.ones(len(sizes))), dtype=np.float64)
        if np.any(np.nan_to_num(np.asarray(header.get("axis mins", 0), dtype=np.float64))):
            raise ReadingError(
                f"{path}: its header gives its place by 'axis mins'; save it with 'space directions' and 'space "
                "origin'."
            )
        matrix = np.diag(spacings[axes])[:3, :3]
        notices.append(
            f"{path}: its header gives no directions{'' if 'spacings' in header else ' and no spacing'}, so its place "
            "is unknown; its axes are assumed to go from right to left, front to back and bottom to top."
        )
    else:
        rows = [None if row is None else np.asarray(row, dtype=np.float64) for row in directions]
        axes = [axis for axis, row in enumerate(rows) if row is not None and not np.isnan(row).all()]
        matrix = np.stack([rows[axis] for axis in axes], axis=1)
        if not space:
            notices.append(f"{path}: its header names no space; left-posterior-superior is assumed.")
    origin = header.get("space origin")
    if directions is not None and origin is None:
        notices.append(f"{path}: its header gives no space origin; (0, 0, 0) is assumed.")
    affine = np.eye(4)
    affine[: matrix.shape[0], : matrix.shape[1]] = matrix[:, :3]
    if matrix.shape == (3, 2):  # one slice in space: the third axis is its normal
        normal = np.cross(*matrix.T)
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    if origin is not None:
        affine[: len(origin), 3] = origin
    affine[:3] *= np.array(_TO_RAS[space])[:, None]
    return affine, axes, tuple(notices)


def _kinds(header: Mapping[str, Any], sizes: tuple[int, ...]) -> list[str]:
    return [str(kind).lower() for kind in header.get("kinds", [""] * len(sizes))]


def _channel_axis(path: Path, header: Mapping[str, Any], sizes: tuple[int, ...], axes: list[int]) -> int | None:
    """The axis that is not spatial, with a list of values for each voxel. None where there is none."""
    others = [axis for axis in range(len(sizes)) if axis not in axes and sizes[axis] != 1]
    if others and path.name.lower().endswith(".seg.nrrd"):
        raise ReadingError(
            f"{path}: this segmentation (.seg.nrrd) has {sizes[others[0]]} layers; expected one class number for each "
            "voxel. In Slicer, export it to a labelmap and save that as NIfTI."
        )
    kinds = [_kinds(header, sizes)[axis] or "none" for axis in others]
    if len(others) > 1 or any(kind in name for kind in _NO_CHANNELS for name in kinds):
        raise ReadingError(
            f"{path}: its axes {', '.join(map(str, others))} (kinds: {', '.join(kinds)}) are no axes in space; at most "
            "one such axis, a list of values, can be read. Save what is to be segmented as a file of its own."
        )
    return others[0] if others else None


def _refuse_units(path: Path, header: Mapping[str, Any]) -> None:
    """Viewers built on ITK take lengths as mm whatever the unit, so a mask would be seen elsewhere than its image."""
    units = [str(unit).strip('"').lower() for key in ("space units", "units") for unit in header.get(key, ())]
    if other := [unit for unit in units if unit not in ("mm", "millimeter", "millimeters", "millimetre", "", "???")]:
        raise ReadingError(f"{path}: its lengths are in {other[0]!r}; save it with lengths in mm.")
