"""Volumes as DICOM series, as a scanner would send them."""

from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
from nibabel import orientations
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

__all__ = ["as_series"]

_STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}
_DATE = {"CT": "20260102", "MR": "20260101"}  # viewers list the newest first: the few CT before the many MR
_AIR = 1024  # HU below water at which stored values begin
_MOST = 4095  # of 12 bits, which every viewer takes


def as_series(volume: nib.Nifti1Image, modality: str, name: str, description: str) -> list[Dataset]:
    """The slices of a volume as instances of one series in a study of its own.

    The same volume and name give the same UIDs, so that a series that is sent again is not there twice.

    Args:
        volume: with orthogonal axes. CT in HU; values of MR are scaled to 12 bits.
        modality: ``CT`` or ``MR``.
        name: of the patient, who is nobody.
        description: of the series.

    Returns:
        one instance a slice, in the order of the slices.

    Raises:
        ValueError: the axes are not orthogonal.
    """
    # columns run to the patient's left and rows to the back, as viewers show axial slices
    to_lps = orientations.axcodes2ornt("LPS")
    volume = volume.as_reoriented(orientations.ornt_transform(nib.io_orientation(volume.affine), to_lps))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine  # NIfTI's axes run to the right and to the front
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise ValueError(f"{name}: the axes of the volume are not orthogonal; those of a DICOM series must be")
    values = _stored(np.asarray(volume.dataobj), modality)
    content = hashlib.sha256(values.tobytes() + affine.tobytes()).hexdigest()
    uids = {kind: _uid(kind, name, content) for kind in ("study", "series", "frame of reference")}
    low, high = (-160, 240) if modality == "CT" else np.percentile(values, (1, 99.5))

    instances = []
    for k in range(values.shape[2]):
        image = Dataset()
        image.preamble = bytes(128)  # without it an instance is sent as it is, and is no file
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SpecificCharacterSet = "ISO_IR 192"
        image.SOPClassUID, image.SOPInstanceUID = _STORAGE[modality], _uid(f"slice {k}", name, content)
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = uids["study"], uids["series"]
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = uids["frame of reference"], ""
        image.PatientName, image.PatientID = f"Sample^{modality}", name
        image.PatientBirthDate = image.PatientSex = image.ReferringPhysicianName = image.AccessionNumber = ""
        image.StudyDate = image.SeriesDate = image.ContentDate = _DATE[modality]
        image.StudyTime = image.SeriesTime = image.ContentTime = "120000"
        image.StudyID, image.SeriesNumber, image.InstanceNumber = "1", 1, k + 1
        image.StudyDescription = image.SeriesDescription = description
        image.Manufacturer, image.Modality, image.ImageType = "medsaga", modality, ["DERIVED", "SECONDARY", "AXIAL"]
        image.ImageOrientationPatient = _decimals([*axes[:, 0], *axes[:, 1]])
        image.ImagePositionPatient = _decimals(affine[:3, 3] + k * affine[:3, 2])
        image.PixelSpacing = _decimals(spacing[[1, 0]])  # between rows, between columns
        image.SliceThickness = _decimals(spacing[2:])[0]
        if modality == "CT":
            image.RescaleIntercept, image.RescaleSlope, image.RescaleType, image.KVP = -_AIR, 1, "HU", ""
        else:
            image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "GR", "NONE", ""
            image.MRAcquisitionType, image.EchoTime, image.RepetitionTime, image.EchoTrainLength = "3D", "", "", ""
        image.WindowCenter, image.WindowWidth = _decimals([(low + high) / 2, max(high - low, 1)])
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.Columns, image.Rows = values.shape[:2]
        image.PixelData = np.ascontiguousarray(values[:, :, k].T).tobytes()
        instances.append(image)
    return instances


def _stored(values: np.ndarray, modality: str) -> np.ndarray:
    if modality == "CT":
        return np.rint(values + _AIR).clip(0, 2**16 - 1).astype("<u2")
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) / max(high - low, 1e-9) * _MOST).astype("<u2")


def _uid(*parts: str) -> str:
    return generate_uid(entropy_srcs=["medsaga sample", *parts])


def _decimals(values: np.ndarray | list[float]) -> list[str]:
    """DICOM's decimal strings: at most 16 characters."""
    return [str(DSfloat(float(value), auto_format=True)) for value in values]
