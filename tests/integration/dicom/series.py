"""DICOM series from arrays whose geometry is known, with the tags that a hospital's images have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

STORAGE = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Series:
    """A series as it was made.

    Args:
        study, uid: Study and Series Instance UID.
        voxels: stored values (modality's units), indexed by column, row, slice; by column and row for X-rays.
        affine: 4×4, voxel index to mm in R, A, S, as in NIfTI.
        files: the instances, in an order that is not that of the slices.
    """

    study: str
    uid: str
    voxels: np.ndarray
    affine: np.ndarray
    files: list[Path]

    def world(self, affine: np.ndarray, index: np.ndarray) -> np.ndarray:
        """This series' voxel indices (N×3, int) of another grid's (``affine``, RAS) voxel indices (N×3)."""
        to_mine = np.linalg.inv(self.affine) @ affine
        exact = index @ to_mine[:3, :3].T + to_mine[:3, 3]
        np.testing.assert_allclose(exact, np.rint(exact), atol=2e-2, err_msg="grids are not aligned")
        return np.rint(exact).astype(int)


def oblique_affine(spacing: tuple[float, float, float], origin: tuple[float, float, float], flip: bool) -> np.ndarray:
    """RAS affine turned about all three axes; with ``flip`` the slices run against rows × columns."""
    a, b, c = np.deg2rad([12.0, -9.0, 20.0])
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    # first along -x and -y: rows and columns of a supine patient's axial slices
    axes = turn_z @ turn_y @ turn_x @ np.diag([-1.0, -1.0, -1.0 if flip else 1.0])
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def write_volume(folder: Path, voxels: np.ndarray, affine: np.ndarray, modality: str, patient: str) -> Series:
    """One instance a slice.

    Args:
        voxels: integer values, indexed by column, row, slice: HU for CT.
        affine: index to mm in R, A, S; its axes must be orthogonal.
    """
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-4), "DICOM slices have orthogonal axes"
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    offset = 1024 if modality == "CT" else 0
    files = []
    # hospitals' archives return instances in any order, and number them from either end
    for number, k in enumerate(np.random.RandomState(0).permutation(voxels.shape[2])):
        image = _instance(modality, patient, study, uid, number + 1)
        image.FrameOfReferenceUID = frame
        image.PositionReferenceIndicator = ""
        image.ImageOrientationPatient = [_decimal(v) for v in (*axes[:, 0], *axes[:, 1])]
        image.ImagePositionPatient = [_decimal(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        image.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
        image.SliceThickness = _decimal(spacing[2])
        if modality == "CT":
            image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -offset, 1, "HU"
            image.KVP = 120
            image.ConvolutionKernel = "STANDARD"
        else:
            image.ScanningSequence, image.SequenceVariant, image.MRAcquisitionType = "GR", "SP", "3D"
            image.MagneticFieldStrength, image.EchoTime, image.RepetitionTime = 3, 2.9, 7.2
        _pixels(image, voxels[:, :, k].T + offset)
        files.append(_save(image, folder))
    return Series(study, uid, voxels, affine, files)


def write_xray(folder: Path, pixels: np.ndarray, modality: str, patient: str, inverted: bool = False) -> Series:
    """A projection: one instance without a position in the patient.

    Args:
        pixels: indexed by column and row, higher is brighter.
        inverted: store it as MONOCHROME1, as many detectors do.
    """
    study, uid = generate_uid(), generate_uid()
    image = _instance(modality, patient, study, uid, 1)
    image.ViewPosition = "PA"
    image.BodyPartExamined = "CHEST"
    image.ImagerPixelSpacing = [0.7, 0.7]
    image.PixelSpacing = [0.7, 0.7]
    image.PatientOrientation = ["L", "F"]
    stored = pixels.max() - pixels if inverted else pixels
    _pixels(image, stored.T)
    if inverted:
        image.PhotometricInterpretation = "MONOCHROME1"
    affine = RAS_TO_LPS @ np.diag([0.7, 0.7, 1.0, 1.0])
    return Series(study, uid, pixels, affine, [_save(image, folder)])


def _instance(modality: str, patient: str, study: str, series: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = STORAGE[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.is_little_endian, image.is_implicit_VR = True, False
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.Modality = modality
    image.ImageType = ["ORIGINAL", "PRIMARY"]
    image.PatientName, image.PatientID = f"Phantom^{patient}^Ünal", patient
    image.PatientBirthDate, image.PatientSex, image.PatientAge = "19600101", "O", "066Y"
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20260102"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "101530.25"
    image.AccessionNumber, image.StudyID = f"A{patient}", "1"
    image.StudyDescription, image.SeriesDescription = "Phantom study", f"Phantom {modality}"
    image.InstitutionName, image.Manufacturer = "Test hospital", "medsaga phantoms"
    image.ReferringPhysicianName = ""
    image.SeriesNumber, image.InstanceNumber = 2, number
    return image


def _pixels(image: pydicom.Dataset, rows: np.ndarray) -> None:
    """``rows`` (row, column) become unsigned 16-bit pixels."""
    assert rows.min() >= 0 and rows.max() < 2**16
    image.Rows, image.Columns = rows.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    low, high = float(rows.min()), float(rows.max())
    slope, intercept = float(image.get("RescaleSlope", 1)), float(image.get("RescaleIntercept", 0))
    image.WindowCenter = _decimal((low + high) / 2 * slope + intercept)
    image.WindowWidth = _decimal(max(high - low, 1) * slope)
    image.PixelData = np.ascontiguousarray(rows.astype("<u2")).tobytes()


def _decimal(value: float) -> str:
    """DICOM's decimal string: at most 16 characters."""
    return f"{value:.10g}"[:16] if abs(value) >= 1e-4 else f"{value:.6f}"


def _save(image: FileDataset, folder: Path) -> Path:
    path = folder / f"{image.SOPInstanceUID}.dcm"
    image.save_as(path, write_like_original=False)
    return path
