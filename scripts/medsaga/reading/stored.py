"""Stored values of a volume's file, read to their end and checked, in the same way for NIfTI, NRRD and MetaImage.

ITK returns uninitialised memory where a compressed MetaImage is damaged, and nibabel does not read as far as the
checksum of a ``.nii.gz``. Therefore the stream is decoded here, with Python's own zlib and bz2.
"""

from __future__ import annotations

import bz2
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .image import ReadingError

__all__ = ["StoredVolume", "check_stored", "data_file_beside", "decoded", "read_stored"]

_LOGGER = logging.getLogger(__name__)

_READ = 2**17
_PIECE = 2**20
_MOST_BEHIND = 2**24
_DEFLATE_RATIO = 1032  # the most bytes that deflate can encode in one


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its header describes it.

    Attributes:
        shape: in the order of the file's axes, the first of which runs fastest.
        dtype: of the values in the file, with its byte order.
        affine: (4, 4), from voxels to mm in RAS.
        file: with the values; a separate one where they are not in the header's file.
        start: bytes of ``file`` before the stream of values; None: the values are its last bytes.
        skip: decoded bytes before the values.
        compression: ``zlib`` (also gzip), ``bz2`` or none.
        channel_axis: the axis of ``shape`` along which the values of one voxel lie; None: no axis of the first three.
        slope, intercept: the values mean ``slope · value + intercept``; None for values as they are.
        notices: sentences, each naming the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray = field(repr=False)
    file: Path
    start: int | None = 0
    skip: int = 0
    compression: str = ""
    channel_axis: int | None = None
    slope: float | None = None
    intercept: float = 0.0
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def data_file_beside(path: Path, name: str) -> Path:
    """The file with the values that belong to a separate header file, which must lie beside that file.

    Raises:
        ReadingError: it lies elsewhere, is not there, or there are several.
    """
    found = path.parent / name
    if not name or "\\" in name or Path(name).name != name or found == path or not found.is_file():
        raise ReadingError(
            f"{path}: its values are in {name!r}; expected the name of one file in the same folder. Put that file "
            "there, or save the image as one file (.nrrd, .mha)."
        )
    return found


def check_stored(path: Path, stored: StoredVolume) -> None:
    """Refuse, without decoding anything, a file that is too small for what its header describes.

    Raises:
        ReadingError: it is too small even for the best possible compression.
    """
    if min(stored.start or 0, stored.skip) < 0:
        raise ReadingError(f"{path}: its header places the values before the start of the file; it is damaged.")
    there = max(0, stored.file.stat().st_size - (stored.start or 0))
    most = {"": 1, "zlib": _DEFLATE_RATIO}.get(stored.compression)
    if most and there * most < stored.skip + stored.size:
        raise ReadingError(
            f"{path}: its header announces {stored.size} bytes of values, but only {there} bytes are there"
            f"{', too few even if compressed' if most > 1 else ''}; it is truncated, or its header is wrong."
        )


def read_stored(path: Path, stored: StoredVolume) -> np.ndarray:
    """Decode the values, and read on to the end of the stream, where its checksum is.

    Args:
        path: is named in errors.
        stored: where they are.

    Returns:
        Shape: as stored; in the machine's byte order, first axis fastest.

    Raises:
        ReadingError: truncated, damaged, or much longer than its header says.
    """
    values = np.empty(stored.size // stored.dtype.itemsize, stored.dtype)
    target = memoryview(values).cast("B")
    position = -stored.skip  # of the next decoded byte among the values
    with open(stored.file, "rb") as file:
        start = stored.file.stat().st_size - stored.size if stored.start is None else stored.start
        file.seek(start)
        if stored.compression:
            for piece in decoded(path, file, stored.compression):
                begin, end = max(position, 0), min(position + len(piece), stored.size)
                if begin < end:
                    target[begin:end] = piece[begin - position : end - position]
                position += len(piece)
                if position > stored.size + _MOST_BEHIND:
                    raise ReadingError(
                        f"{path}: more than {_MOST_BEHIND >> 20} MB follow after the {stored.size} bytes of values "
                        "that its header announces; it is not a volume of that shape."
                    )
        else:
            file.seek(start + stored.skip)
            while (position := max(position, 0)) < stored.size and (count := file.readinto(target[position:])):
                position += count
            position += max(0, stored.file.stat().st_size - file.tell())
    if position < stored.size:
        raise ReadingError(
            f"{path}: it has only {max(position, 0)} of the {stored.size} bytes of values that its header announces; "
            "it is truncated."
        )
    slice_size = int(np.prod(stored.shape[:2])) * stored.dtype.itemsize
    if position - stored.size >= slice_size:
        _LOGGER.warning(
            "%s: %d bytes follow after the values that its header announces, as much as %d slices; "
            "they are left out.",
            path, position - stored.size, (position - stored.size) // slice_size,
        )  # fmt: skip
    if not stored.dtype.isnative:
        values = values.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    return values.reshape(stored.shape, order="F")


def decoded(path: Path, file: BinaryIO, compression: str) -> Iterator[bytes]:
    """Decode from where the file stands to its end, in pieces of at most 1 MiB, and verify checksums.

    Args:
        path: is named in errors.
        file: is at the start of the stream.
        compression: ``zlib`` (also gzip, also of several members), ``bz2`` or none.

    Raises:
        ReadingError: truncated or damaged.
    """
    try:
        if compression == "zlib":
            yield from _inflated(path, file)
        else:
            source = bz2.BZ2File(file) if compression == "bz2" else file
            yield from iter(lambda: source.read(_PIECE), b"")
    except (zlib.error, OSError, EOFError) as err:
        raise ReadingError(f"{path}: its compressed values are damaged or truncated: {err}.") from err


def _inflated(path: Path, file: BinaryIO) -> Iterator[bytes]:
    decoder, data = None, b""
    while data := data or file.read(_READ):
        if decoder is None:
            data = data.lstrip(b"\0")  # zeros that pad a gzip file
            if not data:
                continue
            decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, as its first bytes say
        if piece := decoder.decompress(data, _PIECE):
            yield piece
        data = decoder.unconsumed_tail
        if decoder.eof:
            data, decoder = decoder.unused_data, None
    if decoder is not None:
        if piece := decoder.flush():
            yield piece
        if not decoder.eof:
            raise ReadingError(f"{path}: its compressed values end too early; it is truncated.")
