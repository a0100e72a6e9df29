"""The stored pixels of DICOM frames, complete or refused. pydicom decodes them, with GDCM where they are compressed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.pixel_data_handlers.util import convert_color_space

from .dicom_decoder import decode, decode_apart
from .dicom_files import UNDEFINED, DicomFile, opened, whole
from .image import ReadingError, reason

__all__ = ["check_frames", "read_frames"]

_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLosslessP14, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_GDCM = (*_JPEG, *_JPEG_LS, *_JPEG_2000)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


def check_frames(file: DicomFile) -> None:
    """Refuse, from the header alone, pixels of an unsupported kind and more pixels than the file can hold.

    Raises:
        ReadingError: float or 1-bit pixels, an unknown transfer syntax or colour, a file that is cut off...
    """
    if file.element != "PixelData":
        found = file.element or "no pixel data; is the file complete?"
        raise ReadingError(f"{file.path}: has {found}{'; only whole numbers can be read' if file.element else ''}.")
    stored = file.stored
    columns, rows, samples, allocated, kind = stored.columns, stored.rows, stored.samples, stored.allocated, stored.kind
    if min(columns, rows, file.frames) < 1:
        raise ReadingError(f"{file.path}: its header gives {columns} columns, {rows} rows and {file.frames} frames.")
    if allocated not in (8, 16):
        raise ReadingError(f"{file.path}: its BitsAllocated is {allocated}; only 8 and 16 can be read.")
    if not (0 < stored.bits <= allocated and stored.bits - 1 <= stored.high < allocated):
        raise ReadingError(
            f"{file.path}: its BitsStored {stored.bits} and HighBit {stored.high} do not fit {allocated} bits."
        )
    if kind not in (_GREY if samples == 1 else _COLOURS if samples == 3 else ()):
        raise ReadingError(
            f"{file.path}: it has {samples} samples a pixel and PhotometricInterpretation {kind or 'missing'}; only 1 "
            f"with {', '.join(_GREY)} and 3 with {', '.join(_COLOURS)} can be read."
        )
    known = (*_NATIVE, *_GDCM, uid.RLELossless)
    if file.syntax not in known:
        raise ReadingError(f"{file.path}: its transfer syntax {file.syntax.name} cannot be read; decompress it first.")
    if file.syntax not in _NATIVE:
        if file.length != UNDEFINED:
            raise ReadingError(f"{file.path}: its header says {file.syntax.name}, but its pixels are not encapsulated.")
        return
    if allocated == 8 and file.syntax == uid.ExplicitVRBigEndian:
        raise ReadingError(f"{file.path}: big-endian pixels of 8 bits cannot be read; convert it to little-endian.")
    needed = _frame_bytes(file) * file.frames
    with opened(file.path) as stream:
        held = min(file.length, stream.seek(0, 2) - file.offset) if file.length != UNDEFINED else 0
    if held < needed:
        raise ReadingError(
            f"{file.path}: holds {max(held, 0)} bytes of pixels; its header ({columns}×{rows}, {file.frames} "
            f"frame{'s' * (file.frames > 1)}) asks for {needed}. The file is cut off or damaged."
        )
    if held - needed >= min(columns, rows) * samples * allocated // 8 and held - needed > 1:  # 1: an even length
        raise ReadingError(
            f"{file.path}: holds {held} bytes of pixels, more than the {needed} of {file.frames} frame"
            f"{'s' * (file.frames > 1)} of {columns}×{rows}; Rows, Columns or NumberOfFrames is wrong."
        )


def read_frames(file: DicomFile) -> Iterator[np.ndarray]:
    """Decode a file's frames one after the other, as they are stored: before rescaling.

    Yields:
        (rows, columns) in the stored type, or (rows, columns, 3) in RGB.

    Raises:
        ReadingError: truncated or damaged data.
    """
    try:
        with opened(file.path) as stream:
            stream.seek(file.offset)
            if file.syntax in _NATIVE:
                size = _frame_bytes(file)
                for _ in range(file.frames):
                    yield _decoded(file, stream.read(size))
                return
            fragments = list(_fragments(file, stream.read()))
        for number, data in enumerate(_frames_of(file, fragments), 1):
            _check_codestream(file, data, number)
            yield _decoded(file, data)
    except ReadingError:
        raise
    except MemoryError as e:
        raise ReadingError(f"{file.path}: there is not enough memory to decode it.") from e
    except Exception as e:  # decoders raise exceptions of many kinds
        raise ReadingError(f"{file.path}: its pixels cannot be decoded ({file.syntax.name}): {reason(e)}.") from e


def _frame_bytes(file: DicomFile) -> int:
    stored = file.stored
    size = stored.columns * stored.rows * stored.samples * stored.allocated // 8
    return size * 2 // 3 if stored.kind == "YBR_FULL_422" else size


def _decoded(file: DicomFile, data: bytes) -> np.ndarray:
    """One frame, as :func:`read_frames` yields it."""
    stored, native = file.stored, file.syntax in _NATIVE
    if native and stored.samples == 1:
        big = file.syntax == uid.ExplicitVRBigEndian
        pixels = np.frombuffer(data, stored.dtype.newbyteorder(">") if big else stored.dtype)
        return pixels.reshape(stored.rows, stored.columns)
    if stored.samples == 3 and file.syntax == uid.JPEGBaseline8Bit:
        picture = Image.open(BytesIO(data))
        subsampled = len({part[1:3] for part in picture.layer}) > 1  # type: ignore[attr-defined]
        if "jfif" in picture.info or "adobe" in picture.info or subsampled:
            # the codestream itself says that it is YCbCr, although many headers say RGB
            return np.asarray(picture.convert("RGB"))
    names = ("Columns", "Rows", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")
    sizes = (stored.columns, stored.rows, stored.samples, stored.allocated, stored.bits, stored.high)
    elements = dict(zip(names, sizes, strict=True)) | {"PhotometricInterpretation": stored.kind}
    elements |= {
        "PixelRepresentation": int(stored.signed),
        "PlanarConfiguration": whole(file, "PlanarConfiguration", 0),
    }
    pixels = (decode_apart if file.syntax in _GDCM else decode)(elements, file.syntax, data)
    # JPEG 2000 decoders undo the codestream's own transforms, YBR_ICT and YBR_RCT
    return convert_color_space(pixels, stored.kind, "RGB") if stored.kind in ("YBR_FULL", "YBR_FULL_422") else pixels


def _fragments(file: DicomFile, data: bytes) -> Iterator[bytes]:
    """Items of encapsulated pixel data, without the offset table; a delimiter must follow the last one."""
    place, number = 0, 0
    while True:
        group, element, length = struct.unpack_from("<HHL", data, place) if place + 8 <= len(data) else (0, 0, 0)
        place += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            return
        if (group, element) != (0xFFFE, 0xE000) or place + length > len(data):
            raise ReadingError(f"{file.path}: its compressed pixels end too early; the file is cut off or damaged.")
        if number > 0:
            yield data[place : place + length]
        place += length
        number += 1


def _frames_of(file: DicomFile, fragments: list[bytes]) -> list[bytes]:
    """Fragments joined to frames: a frame goes on until the next codestream starts; with RLE it is one fragment."""
    frames: list[bytes] = []
    for fragment in fragments:
        if file.syntax == uid.RLELossless or not frames or fragment[:2] == _start(file):
            frames.append(fragment)
        else:
            frames[-1] += fragment
    if len(frames) != file.frames:
        raise ReadingError(f"{file.path}: holds {len(frames)} frames of pixels; its header says {file.frames}.")
    return frames


def _start(file: DicomFile) -> bytes:
    return b"\xff\x4f" if file.syntax in _JPEG_2000 else b"\xff\xd8"


def _check_codestream(file: DicomFile, data: bytes, number: int) -> None:
    """Refuse a truncated codestream, which decoders fill up with grey, and one whose size differs from the header's."""
    if file.syntax == uid.RLELossless:
        return  # pydicom refuses segments that are too short
    # bytes may follow the end: padding to an even length, or to blocks
    if data[:2] != _start(file) or not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise ReadingError(f"{file.path}: the {file.syntax.name} data of frame {number} are cut off or damaged.")
    columns, rows, samples, bits = (_j2k_format if file.syntax in _JPEG_2000 else _jpeg_format)(data)
    stored = file.stored
    if (columns, rows, samples) != (stored.columns, stored.rows, stored.samples):
        raise ReadingError(
            f"{file.path}: frame {number} is compressed as {columns}×{rows} pixels of {samples} values; its header "
            f"says {stored.columns}×{stored.rows} of {stored.samples}."
        )
    if (bits + 7) // 8 != stored.allocated // 8:
        raise ReadingError(
            f"{file.path}: frame {number} is compressed with {bits} bits a value; its header says {stored.allocated}."
        )


def _jpeg_format(data: bytes) -> tuple[int, int, int, int]:
    """Columns, rows, components and bits of a JPEG or JPEG-LS frame header (ISO 10918-1, B.2.2)."""
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, place + 4)
            return columns, rows, samples, bits
        # FF FF: a fill byte before a marker
        place += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, place + 2)[0]
    return 0, 0, 0, 0


def _j2k_format(data: bytes) -> tuple[int, int, int, int]:
    """Columns, rows, components and bits of a JPEG 2000 codestream, which SIZ begins (ISO 15444-1, A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">4L", data, 8)
    samples, bits = struct.unpack_from(">HB", data, 40)
    return right - left, bottom - top, samples, (bits & 0x7F) + 1
