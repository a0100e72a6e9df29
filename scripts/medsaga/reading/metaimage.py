"""Headers of MetaImage files (.mha, .mhd).

They are lines of text, ``key = value``. ITK reads them, too, but does not say where the values are, or whether they are
complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .image import ReadingError
from .stored import StoredVolume, data_file_beside

__all__ = ["metaimage_header"]

_MOST_HEADER = 2**20  # bytes
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # 4 bytes, as MetaIO has it on every machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def metaimage_header(path: Path) -> StoredVolume:
    """Read the header.

    Raises:
        ReadingError: what it says cannot be used.
        Exception: values that should be numbers and are not.
    """
    with open(path, "rb") as file:
        raw = file.read(_MOST_HEADER)
    fields, start = _fields(path, raw)
    rank = int(_value(path, fields, "NDims"))
    shape = tuple(int(n) for n in _value(path, fields, "DimSize").split())
    if len(shape) != rank:
        raise ReadingError(f"{path}: its header gives {len(shape)} sizes (DimSize) for {rank} axes (NDims).")
    kind = _value(path, fields, "ElementType")
    channels = int(fields.get("ElementNumberOfChannels", 1))
    if channels != 1:
        shape, kind = (channels, *shape), kind.removesuffix("_ARRAY")
    if kind not in _DTYPES:
        raise ReadingError(f"{path}: its values are of type {kind!r}; expected one of {', '.join(_DTYPES)}.")
    if not _true(fields, "BinaryData", default=True):
        raise ReadingError(f"{path}: its values are written as text (BinaryData = False); save it as binary.")
    if float(fields.get("ElementToIntensityFunctionSlope", 1)) != 1 or float(
        fields.get("ElementToIntensityFunctionOffset", 0)
    ):
        raise ReadingError(
            f"{path}: its header says to rescale the values (ElementToIntensityFunction), and not all programs do so; "
            "save it with the rescaled values."
        )
    big = _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB")
    name = _value(path, fields, "ElementDataFile")
    data_file = path
    if name.upper() != "LOCAL":
        data_file, start = data_file_beside(path, name), 0
    compressed = _true(fields, "CompressedData")
    skip = int(fields.get("HeaderSize", 0))
    if skip < -1 or (skip and (compressed or data_file == path)):
        raise ReadingError(
            f"{path}: HeaderSize is {skip}; expected 0, or -1 or more if raw values are in another file."
        )
    return StoredVolume(
        shape=shape,
        dtype=np.dtype(_DTYPES[kind]).newbyteorder(">" if big else "<"),
        affine=_affine(path, fields, rank),
        file=data_file,
        start=None if skip == -1 else start + skip,
        compression="zlib" if compressed else "",
        channel_axis=0 if channels != 1 else None,
    )


def _fields(path: Path, raw: bytes) -> tuple[dict[str, str], int]:
    """Values by key, and how many bytes the header has: it ends with the line of ``ElementDataFile``."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(raw) and "ElementDataFile" not in fields:
        end = raw.find(b"\n", position)
        end = len(raw) if end < 0 else end
        key, equals, value = raw[position:end].decode("latin-1").partition("=")
        if equals:
            fields[key.strip()] = value.strip()
        elif key.strip():
            break
        position = end + 1
    if "ElementDataFile" not in fields:
        raise ReadingError(f"{path}: it has no MetaImage header; it is of another format, or damaged.")
    return fields, position


def _value(path: Path, fields: Mapping[str, str], key: str) -> str:
    if key not in fields:
        raise ReadingError(f"{path}: its header lacks {key}.")
    return fields[key]


def _true(fields: Mapping[str, str], key: str, default: bool = False) -> bool:
    return fields[key][:1].lower() in ("t", "1") if key in fields else default


def _affine(path: Path, fields: Mapping[str, str], rank: int) -> np.ndarray:
    if (unit := fields.get("DistanceUnits", "mm").lower()) not in ("mm", "?", ""):
        # ITK's viewers take lengths as mm whatever the unit, so a mask would be seen elsewhere than its image
        raise ReadingError(f"{path}: its lengths are in {unit!r} (DistanceUnits); save it with lengths in mm.")

    def numbers(keys: tuple[str, ...], default: np.ndarray) -> np.ndarray:
        key = next((key for key in keys if key in fields), None)
        if key is None:
            return default
        found = np.array([float(n) for n in fields[key].split()])
        if found.size != default.size:
            raise ReadingError(f"{path}: {key} has {found.size} numbers; expected {default.size}.")
        return found.reshape(default.shape)

    spacing = numbers(("ElementSpacing", "ElementSize"), np.ones(rank))
    directions = numbers(("TransformMatrix", "Orientation", "Rotation"), np.eye(rank)).T  # each row there is an axis
    origin = numbers(("Offset", "Position", "Origin"), np.zeros(rank))
    axes = min(rank, 3)
    affine = np.eye(4)
    affine[:axes, :axes] = (directions * spacing)[:axes, :axes]
    affine[:axes, 3] = origin[:axes]
    affine[:2] *= -1  # ITK's LPS to RAS
    return affine
