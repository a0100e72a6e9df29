"""One DICOM file: its header, where its pixels lie, and what it is."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from .image import ReadingError, reason

__all__ = [
    "UNDEFINED",
    "DicomFile",
    "Stored",
    "is_dicom",
    "numbers",
    "opened",
    "other_than_image",
    "read_header",
    "whole",
]

UNDEFINED = 0xFFFFFFFF  # length of encapsulated pixel data
_MAX_INFLATED = 2**27  # bytes; a deflated file of 130 kB can hold that much
_PALETTE = [f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")]
# the patient's name, dates and other personal data are not read
_KEYWORDS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "OverlayBitPosition", *_PALETTE),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_TAGS: list[Any] = [0x60000102 if keyword == "OverlayBitPosition" else keyword for keyword in _KEYWORDS]
# they have rows, columns and pixel data, but are not images of a patient
_PIXELS_OF_OTHER_KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose",
}


@dataclass(frozen=True)
class Stored:
    """How pixels are stored: the DICOM elements of these names, checked by ``check_frames``."""

    columns: int
    rows: int
    samples: int
    allocated: int
    bits: int
    high: int
    signed: bool
    kind: str  # PhotometricInterpretation

    @property
    def dtype(self) -> np.dtype:
        """Of a sample, little-endian."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest value that the stored bits can take."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A file's header and the place of its pixel data.

    Attributes:
        path: the file.
        header: the elements that are needed here.
        element: keyword of the pixel data's element, empty where there is none.
        offset: of the pixel data's first byte.
        length: of the pixel data in bytes, :data:`UNDEFINED` for encapsulated ones.
    """

    path: Path
    header: Dataset
    element: str = ""
    offset: int = 0
    length: int = 0

    @cached_property
    def frames(self) -> int:
        """How many frames the header declares, 1 where it does not say."""
        return whole(self, "NumberOfFrames", 1)

    @cached_property
    def stored(self) -> Stored:
        """How the pixels are stored. Raises :class:`ReadingError` where the header does not say."""
        names = ("Columns", "Rows", "SamplesPerPixel", "BitsAllocated", "BitsStored")
        columns, rows, samples, allocated, bits = (whole(self, name) for name in names)
        high, signed = whole(self, "HighBit", bits - 1), bool(whole(self, "PixelRepresentation"))
        return Stored(columns, rows, samples, allocated, bits, high, signed, self.text("PhotometricInterpretation"))

    @cached_property
    def sop_class(self) -> UID:
        """What kind of object the file holds; empty where it does not say."""
        meta = self.header.file_meta.get("MediaStorageSOPClassUID", "")
        return UID(str(self.header.get("SOPClassUID") or meta or ""))

    @cached_property
    def syntax(self) -> UID:
        """Transfer syntax; where a file without preamble does not give it, it is guessed as pydicom does."""
        guess = "1.2.840.10008.1.2" if self.header.is_implicit_VR else ExplicitVRLittleEndian
        guess = guess if self.header.is_little_endian else "1.2.840.10008.1.2.2"
        return UID(str(self.header.file_meta.get("TransferSyntaxUID") or guess))

    def text(self, keyword: str) -> str:
        """An element as text, with ``\\`` between several values; empty where it is absent."""
        value = self.header.get(keyword)
        return "" if value is None else value if isinstance(value, str) else "\\".join(map(str, np.atleast_1d(value)))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, also one without preamble. Never raises."""
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    if start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):  # groups 2 or 8, which every file begins with
        return False
    try:
        header = read_header(path).header
        return str(header.get("SOPClassUID")).startswith("1.2.840.10008.") and bool(header.get("SOPInstanceUID"))
    except Exception:
        return False


def read_header(path: Path) -> DicomFile:
    """Read a file up to its pixel data.

    Raises:
        ReadingError: it cannot be parsed.
    """
    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag >= 0x7FE00008:
            found.append((int(tag), vr, length))
        return tag >= 0x7FE00008

    try:
        with opened(path) as file:
            header = read_partial(file, at_pixels, force=True, specific_tags=_TAGS)
            place = file.tell()
        # pydicom converts an element when it is looked up; do it here, where all its exceptions become one error
        for element in (*header.file_meta, *header.iterall()):
            assert element is not None
    except ReadingError:
        raise
    except Exception as e:  # pydicom's parsing raises many kinds: struct.error, KeyError, RecursionError...
        raise ReadingError(f"{path}: its DICOM header cannot be read: {reason(e)}; is the file damaged?") from e
    tag, vr, length = found[-1] if found else (0, None, 0)
    element = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}.get(tag, "")
    long = not header.is_implicit_VR and vr in EXPLICIT_VR_LENGTH_32
    return DicomFile(Path(path), header, element, place + (12 if long else 8), length)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file as a stream in which offsets of pixel data hold; a deflated one is inflated, within bounds."""
    with open(path, "rb") as file:
        start = file.read(4096)
        file.seek(0)
        uid = DeflatedExplicitVRLittleEndian.encode()
        if start[128:132] != b"DICM" or uid not in start:
            yield file
            return
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            yield file
            return
        # rebuild the file as it would be without compression; pydicom inflates, too, but without a limit
        head = file.read(144 + int(meta.FileMetaInformationGroupLength))
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        body = inflate.decompress(file.read(), _MAX_INFLATED)
        if not inflate.eof:
            large = len(body) == _MAX_INFLATED
            problem = f"has more than {_MAX_INFLATED >> 20} MiB when inflated" if large else "is cut off"
            raise ReadingError(f"{path}: this deflated DICOM file {problem}.")
        yield BytesIO(head.replace(uid, ExplicitVRLittleEndian.encode().ljust(len(uid), b"\0")) + body)


def other_than_image(file: DicomFile) -> str:
    """What a file is that holds no image ("Segmentation", "Basic Text SR Storage"); empty for an image."""
    uid = file.sop_class
    if uid in _PIXELS_OF_OTHER_KINDS:
        return _PIXELS_OF_OTHER_KINDS[uid]
    # a damaged image must not count as another object and be left out: the SOP class decides, not the elements
    if not uid or "Image Storage" in uid.name or ("Rows" in file.header and file.element):
        return ""
    return uid.name.removesuffix(" Storage") if uid.name != uid else f"object of class {uid}, without pixels"


def numbers(file: DicomFile, keyword: str, count: int, source: Dataset | None = None) -> np.ndarray | None:
    """An element's finite numbers.

    Args:
        file: for the message; the element is looked up in its header.
        keyword: of the element.
        count: how many there have to be.
        source: an item of a sequence to look in, in the place of the header.

    Returns:
        float64; None where the element is absent or empty.

    Raises:
        ReadingError: another count, not numbers, or not finite.
    """
    value: Any = None
    try:
        value = (file.header if source is None else source).get(keyword)
        if value is None or value == "" or (not isinstance(value, float | int) and len(value) == 0):
            return None
        found = np.atleast_1d(np.array(value, float))
    except Exception as e:
        raise ReadingError(f"{file.path}: its {keyword} must be numbers: {reason(e)}.") from e
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ReadingError(
            f"{file.path}: its {keyword} is {value}; it must be {count} finite number{'s' * (count > 1)}."
        )
    return found


def whole(file: DicomFile, keyword: str, default: int | None = None) -> int:
    """An element's single whole number.

    Raises:
        ReadingError: it is not a whole number, or it is absent and there is no default.
    """
    found = numbers(file, keyword, 1)
    if found is None and default is None:
        raise ReadingError(f"{file.path}: has no {keyword}, which an image must have; is the file damaged?")
    value = float(default if found is None else found[0])  # type: ignore[arg-type]
    if value != round(value):
        raise ReadingError(f"{file.path}: its {keyword} is {value:g}; it must be a whole number.")
    return int(value)
