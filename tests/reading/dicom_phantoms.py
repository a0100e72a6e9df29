"""DICOM images of a phantom whose truth is known, as scanners, archives and accidents make them.

A block of 8×8×5 voxels of 1×1×2 mm (0.64 ml) lies with its centre at RAS (15.5, 22.5, 115) in 48×40×20 voxels, far from
the middle, so that no flip goes unnoticed. It has 1000 HU, all else less than 130: 0.9 of the range separates them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
    generate_uid,
)

CENTRE = (15.5, 22.5, 115.0)  # RAS, mm
ML = 0.64
INDEX = (23.5, 15.5, 7.0)  # of the block's centre: column, row, slice
SPACING = (1.0, 1.0, 2.0)
BLOCK = (slice(20, 28), slice(12, 20), slice(5, 10))
# directions of growing column, row and slice index, in DICOM's LPS
AXIAL = np.eye(3)
SAGITTAL = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], float)
CORONAL = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)
CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "US": UltrasoundImageStorage,
}
_GDCM_SYNTAXES = {
    pydicom.uid.JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
    pydicom.uid.JPEGLosslessP14: gdcm.TransferSyntax.JPEGLosslessProcess14,
    pydicom.uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    pydicom.uid.JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    pydicom.uid.JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    RLELossless: gdcm.TransferSyntax.RLELossless,
}
Edit = Callable[[Dataset, int], None]


def voxels(dtype: type = np.int16) -> np.ndarray:
    """(48, 40, 20), each slice different."""
    values = np.random.RandomState(0).randint(0, 100, (48, 40, 20)) + np.arange(20)
    values[BLOCK] = 1000
    return values.astype(dtype)


def turned(degrees: tuple[float, float, float]) -> np.ndarray:
    """Axial slices turned about x, y and z."""
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (z @ y @ x).T


def truth_affine(axes: np.ndarray = AXIAL, spacing: Iterable[float] = SPACING) -> np.ndarray:
    """RAS affine of (column, row, slice), with the block's centre at :data:`CENTRE`."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ axes.T * np.asarray(list(spacing))
    affine[:3, 3] = CENTRE - affine[:3, :3] @ INDEX
    return affine


def blank(modality: str, study: str, series: str, number: int, sop_class: str = "") -> FileDataset:
    """A data set without pixels and geometry."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class or CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.is_little_endian, image.is_implicit_VR = True, False
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = study, series, modality
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PatientName, image.PatientID, image.InstanceNumber = "Phantom^Secret", "P1", number
    image.SeriesDate, image.StudyDate = "20260102", "20260102"
    return image


def set_pixels(image: Dataset, rows: np.ndarray, kind: str = "MONOCHROME2", bits: int = 0) -> None:
    """Stored pixels, (rows, columns), (rows, columns, 3) or (frames, rows, columns), in the array's own type."""
    colour = kind in ("RGB", "YBR_FULL", "YBR_FULL_422")
    image.Rows, image.Columns = rows.shape[:2] if colour else rows.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = (3 if colour else 1), kind
    if colour:
        image.PlanarConfiguration = 0
    image.BitsAllocated = 8 * rows.itemsize
    image.BitsStored = bits or image.BitsAllocated
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(rows.dtype.kind == "i")
    image.PixelData = np.ascontiguousarray(rows).tobytes()
    image["PixelData"].VR = "OW" if rows.itemsize == 2 else "OB"


def save(image: FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> Path:
    """Write in a transfer syntax; ``preamble=False`` without file meta information, too, implicit little-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not preamble:
        image.file_meta, image.preamble = FileMetaDataset(), None
        image.is_implicit_VR = True
        image.save_as(path, write_like_original=True)
        return path
    plain = syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    image.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax if plain else ExplicitVRLittleEndian)
    image.is_implicit_VR = syntax == ImplicitVRLittleEndian
    image.is_little_endian = syntax != ExplicitVRBigEndian
    if syntax == ExplicitVRBigEndian and image.BitsAllocated == 16:
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    image.save_as(path, write_like_original=False)
    if syntax in _GDCM_SYNTAXES:
        compress(path, syntax)
    return path


def compress(path: Path, syntax: str) -> None:
    """Rewrite a file with compressed pixels, by GDCM; all else stays, which GDCM's writer would make up anew."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(_GDCM_SYNTAXES[pydicom.uid.UID(syntax)]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    image = pydicom.dcmread(path)
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    compressed = pydicom.dcmread(path)
    assert compressed.file_meta.TransferSyntaxUID == syntax
    image["PixelData"] = compressed["PixelData"]
    image.PhotometricInterpretation = compressed.PhotometricInterpretation
    image.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    image.save_as(path, write_like_original=False)


def write_series(
    folder: Path,
    *,
    axes: np.ndarray = AXIAL,
    spacing: tuple[float, float, float] = SPACING,
    keep: Iterable[int] = range(20),
    heights: Callable[[int], float] = lambda k: 2.0 * k,
    shift: Callable[[int], tuple[float, float]] = lambda k: (0.0, 0.0),
    jitter: float = 0.0,
    modality: str = "CT",
    uid: str = "",
    frame: str = "",
    dtype: type = np.uint16,
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1, -1024),
    values: np.ndarray | None = None,
    edit: Edit = lambda image, k: None,
    syntax: str = ExplicitVRLittleEndian,
    preamble: bool = True,
    suffix: str = ".dcm",
    prefix: str = "IM",
) -> list[Path]:
    """One file a slice, in an order of names and numbers that is not that of the slices.

    Args:
        keep: slices that are written.
        heights: mm along the normal, of a slice.
        shift: mm along rows and columns by which a slice is shifted (tilt).
        jitter: of direction cosines, largest.
        rescale: slope and intercept of a slice; MR has none.
        edit: called before a slice is saved.

    Returns:
        the files, in the order of ``keep``.
    """
    data = voxels() if values is None else values
    uid, frame, study = uid or generate_uid(), frame or generate_uid(), generate_uid()
    start = truth_affine(axes, spacing)[:3, 3] * [-1, -1, 1]
    random, kept = np.random.RandomState(1), list(keep)
    names = random.permutation(len(kept))
    files = []
    for n, k in enumerate(kept):
        image = blank(modality, study, uid, int(names[n]) + 1)
        cosines = axes[:2] + random.uniform(-jitter, jitter, (2, 3))
        image.ImageOrientationPatient = [f"{v:.9f}" for v in cosines.ravel()]
        place = start + axes[2] * heights(k) + axes[0] * shift(k)[0] + axes[1] * shift(k)[1]
        image.ImagePositionPatient = [f"{v:.6f}" for v in place]
        image.PixelSpacing, image.FrameOfReferenceUID = [f"{spacing[1]:g}", f"{spacing[0]:g}"], frame
        image.SliceThickness = f"{spacing[2]:g}"
        stored = data[:, :, k].T.astype(float)
        if modality == "CT":
            slope, intercept = rescale(k)
            image.RescaleSlope, image.RescaleIntercept = str(slope), str(intercept)
            stored = (stored - intercept) / slope
        set_pixels(image, np.rint(stored).astype(dtype))
        edit(image, k)
        files.append(save(image, folder / f"{prefix}{names[n]:04d}{suffix}", syntax, preamble))
    return files


def write_enhanced(
    path: Path,
    *,
    frames: Iterable[int] = range(20),
    axes: np.ndarray = AXIAL,
    modality: str = "CT",
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1, -1024),
    shared_rescale: bool = False,
    edit: Edit = lambda image, k: None,
    syntax: str = ExplicitVRLittleEndian,
    values: np.ndarray | None = None,
) -> Path:
    """One file with a frame a slice.

    Args:
        frames: slice of each frame, in any order; a slice may come twice.
        shared_rescale: slope and intercept stand once, for all frames.
    """
    kept, data = list(frames), voxels() if values is None else values
    sop_class = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    image = blank(modality, generate_uid(), generate_uid(), 1, sop_class)
    image.FrameOfReferenceUID = generate_uid()
    start, spacing = truth_affine(axes)[:3, 3] * [-1, -1, 1], SPACING
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [spacing[1], spacing[0]]
    shared.PixelMeasuresSequence[0].SliceThickness = 5  # wrong, as it often is
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{v:.9f}" for v in axes[:2].ravel()]
    groups, stored = [], []
    for k in kept:
        group, transformation = Dataset(), Dataset()
        group.PlanePositionSequence = [Dataset()]
        place = start + axes[2] * spacing[2] * k
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.6f}" for v in place]
        transformation.RescaleSlope, transformation.RescaleIntercept = map(str, rescale(k))
        (shared if shared_rescale else group).PixelValueTransformationSequence = [transformation]
        groups.append(group)
        stored.append((data[:, :, k].T - rescale(k)[1]) / rescale(k)[0])
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], groups
    set_pixels(image, np.rint(stored).astype(np.uint16))
    image.NumberOfFrames = len(kept)
    edit(image, 0)
    return save(image, path, syntax)


def xray_pixels(dtype: type = np.uint16) -> np.ndarray:
    """(48, 40), columns and rows: the phantom's middle slice, as a picture of 8×8 bright pixels."""
    return voxels()[:, :, 7].astype(dtype)


def write_picture(
    path: Path,
    pixels: np.ndarray,
    *,
    kind: str = "MONOCHROME2",
    modality: str = "DX",
    uid: str = "",
    spacing: str = "ImagerPixelSpacing",
    bits: int = 0,
    edit: Edit = lambda image, k: None,
    syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """An X-ray or picture, without a place in the patient.

    Args:
        pixels: stored values, by column, row and, for colours, channel.
        spacing: the element that gives 0.5 mm between columns and 0.7 mm between rows; empty for none.
    """
    image = blank(modality, generate_uid(), uid or generate_uid(), 1)
    if spacing:
        setattr(image, spacing, ["0.7", "0.5"])
    set_pixels(image, np.swapaxes(pixels, 0, 1), kind, bits)
    edit(image, 0)
    return save(image, path, syntax)


def write_other(path: Path, sop_class: str, modality: str, edit: Edit = lambda image, k: None) -> Path:
    """An object of another kind: a report, a plan, a presentation state."""
    image = blank("CT", generate_uid(), generate_uid(), 1, sop_class)
    image.Modality = modality
    edit(image, 0)
    return save(image, path)


def cut(path: Path, part: float) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
