"""Images as dcmqi takes them, one slice in a file and with a position in the patient, for those that are otherwise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medsaga.reading import Grid

__all__ = ["point_to_frames", "point_to_pixels", "write_stand_ins"]


def write_stand_ins(files: Sequence[Path], grid: Grid, folder: Path) -> dict[str, tuple[pydicom.Dataset, int]]:
    """Fill a folder with one file a slice: the series' own where they are that, else files with the same header.

    A projection (X-ray) becomes a slice at the origin, the frames of an enhanced multi-frame file become slices.

    Args:
        files: of the series, in the order of the slices.
        grid: of the series.
        folder: to write to.

    Returns:
        by UID of a stand-in for a frame: the header of its file, and its number there, from 1.
    """
    if len(grid.shape) == 2:
        image = pydicom.dcmread(files[0], force=True)
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing = _decimals(grid.spacing[::-1])  # between rows, between columns
        image.SliceThickness = 1
        image.FrameOfReferenceUID = image.SeriesInstanceUID
        image.save_as(folder / "0.dcm")
        return {}
    headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    if "PerFrameFunctionalGroupsSequence" not in headers[0]:
        for number, file in enumerate(files):
            (folder / f"{number}.dcm").symlink_to(Path(file).resolve())
        return {}
    frames = [(header, n) for header in headers for n in range(1, len(header.PerFrameFunctionalGroupsSequence) + 1)]
    places = np.array([_place_of(header, n) for header, n in frames])
    stand_ins = {}
    for number in range(grid.shape[2]):
        header, n = frames[np.linalg.norm(places - _place(grid, number), axis=1).argmin()]
        uid = generate_uid()
        stand_ins[uid] = (header, n)
        _frame_as_slice(header, grid, number, uid).save_as(folder / f"{number}.dcm", write_like_original=False)
    return stand_ins


def _place_of(header: pydicom.Dataset, number: int) -> np.ndarray:
    """Position of a frame's first pixel in LPS, mm; frames are counted from 1."""
    group = header.PerFrameFunctionalGroupsSequence[number - 1]
    group = group if "PlanePositionSequence" in group else header.SharedFunctionalGroupsSequence[0]
    return np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)


def _place(grid: Grid, number: int) -> np.ndarray:
    """Position of a slice's first pixel in LPS, mm."""
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine @ [0, 0, number, 1])[:3]


def _frame_as_slice(header: pydicom.Dataset, grid: Grid, number: int, uid: str) -> pydicom.Dataset:
    kept = [e.tag for e in header if e.VR != "SQ" and e.tag.group != 0x0028 and e.keyword != "NumberOfFrames"]
    image = pydicom.Dataset()
    for tag in kept:
        image[tag] = copy.copy(header[tag])  # a value that is set must not change the header
    columns = np.diag([-1.0, -1.0, 1.0]) @ grid.affine[:3, :2] / grid.spacing[:2]
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, uid
    image.ImagePositionPatient = _decimals(_place(grid, number))
    image.ImageOrientationPatient = _decimals(columns.T.ravel())
    image.PixelSpacing, image.SliceThickness = _decimals(grid.spacing[1::-1]), grid.spacing[2]
    image.Columns, image.Rows = grid.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = bytes(2 * -(-image.Rows * image.Columns // 2))  # dcmqi wants some, and does not look at them
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    image.is_little_endian, image.is_implicit_VR = True, False
    return image


def _decimals(values: Sequence[float]) -> list[str]:
    """DICOM's decimal strings: at most 16 characters."""
    return [str(pydicom.valuerep.DSfloat(float(v), auto_format=True)) for v in values]


def point_to_frames(seg: pydicom.Dataset, frames: dict[str, tuple[pydicom.Dataset, int]]) -> None:
    """Let a segmentation refer to the frames themselves in the place of their stand-ins."""

    def point(item: pydicom.Dataset) -> int:
        header, number = frames[item.ReferencedSOPInstanceUID]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        return number

    for groups in seg.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", []):
            for source in derivation.get("SourceImageSequence", []):
                source.ReferencedFrameNumber = point(source)
    for series in seg.ReferencedSeriesSequence:
        for item in series.ReferencedInstanceSequence:
            point(item)
        files = {item.ReferencedSOPInstanceUID: item for item in series.ReferencedInstanceSequence}
        series.ReferencedInstanceSequence = list(files.values())


def point_to_pixels(seg: pydicom.Dataset) -> None:
    """Leave a projection's frames tied to its pixels (derivation image) and to no place in the patient."""
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        if name in seg:
            delattr(seg, name)
    for groups in (*seg.SharedFunctionalGroupsSequence, *seg.PerFrameFunctionalGroupsSequence):
        for name in ("PlanePositionSequence", "PlaneOrientationSequence"):
            if name in groups:
                delattr(groups, name)
        if "FrameContentSequence" in groups:
            content = groups.FrameContentSequence[0]
            content.DimensionIndexValues = [np.atleast_1d(content.DimensionIndexValues).tolist()[0]]
    seg.DimensionIndexSequence = seg.DimensionIndexSequence[:1]
    seg.PatientOrientation = ""  # to be there, though empty, where there is no orientation of the plane
