"""One label in every form that people store labels in. Files are written by nibabel, pynrrd, ITK, PIL and pydicom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import nrrd
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import find_contours

__all__ = ["CLASSES", "FORMS", "label", "write_structures"]

CLASSES = ("background", "Liver", "left kidney", "tumour")


def label(shape: tuple[int, ...] = (24, 20, 6)) -> np.ndarray:
    """Class numbers without symmetry: a ring, two parts of one class, and a class that lies in the ring's hole."""
    numbers = np.zeros(shape, dtype=np.uint8)
    numbers[3:12, 2:11] = 1
    numbers[6:9, 5:8] = 0
    numbers[15:20, 4:7] = 2
    numbers[16:18, 12:17] = 2
    numbers[7, 6] = 3
    if len(shape) == 3:
        numbers[..., 0], numbers[..., 4:] = 0, 0
        numbers[14, 10, 4] = 3
    return numbers


def _one_hot(numbers: np.ndarray, classes: range, dtype: type = np.uint8) -> np.ndarray:
    return np.stack([numbers == number for number in classes], -1).astype(dtype)


def _probabilities(numbers: np.ndarray, classes: range) -> np.ndarray:
    """Of the right class at least 0.5, of the others less, nowhere a whole number."""
    right = _one_hot(numbers, classes, np.float32)
    noise = np.random.default_rng(0).uniform(0.05, 0.4, right.shape)
    return np.where(right > 0, 0.95 - noise, noise).astype(np.float32)


def _nifti(values: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def _nrrd(values: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    header = {
        "space": "right-anterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([np.full((1, 3), np.nan), affine[:3, :3].T]),
        "space origin": affine[:3, 3],
    }
    nrrd.write(str(path), np.moveaxis(values, -1, 0), header)
    return path


def _itk(values: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    image = itk.image_from_array(np.ascontiguousarray(values.transpose(2, 1, 0, 3)), is_vector=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    image.SetOrigin(lps[:3, 3].tolist())
    itk.imwrite(image, str(path), compression=True)
    return path


def _a_file_each(numbers: np.ndarray, affine: np.ndarray, folder: Path) -> dict[str, Any]:
    """Of one class there is no file; values, types and spelling of names differ."""
    masks = {
        "liver": (numbers == 1).astype(np.uint8),
        "Left_Kidney": (numbers == 2) * np.float32(7),
        "tumour": (numbers == 3).astype(np.uint8) * 255,
        "unknown": np.ones_like(numbers),
    }
    return {name: str(_nifti(mask, affine, folder / f"{name}.nii.gz")) for name, mask in masks.items()}


def _a_file_an_object(numbers: np.ndarray, affine: np.ndarray, folder: Path) -> dict[str, Any]:
    files = {}
    for number, name in enumerate(CLASSES[1:], start=1):
        mask = numbers == number
        parts = [mask.copy(), mask.copy()]
        parts[0][:, 10:], parts[1][:, :9] = False, False  # they overlap
        files[name] = [
            str(_nifti(part.astype(np.int16) * (9 + n), affine, folder / f"{name} {n}.nii"))
            for n, part in enumerate(parts)
        ]
    return files


def write_structures(path: Path, regions: dict[str, list[np.ndarray]], kind: str = "CLOSED_PLANAR") -> Path:
    """An RTSTRUCT whose contours (N, 3) are given in RAS, mm."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    structures = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    structures.SOPClassUID, structures.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    structures.Modality, structures.StructureSetLabel = "RTSTRUCT", "drawn"
    structures.StructureSetROISequence, structures.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{v:.6f}" for v in (np.asarray(points) * [-1, -1, 1]).ravel()]
            drawn.ContourSequence.append(contour)
        structures.StructureSetROISequence.append(roi)
        structures.ROIContourSequence.append(drawn)
    structures.save_as(path, write_like_original=False)
    return path


def _structures(numbers: np.ndarray, affine: np.ndarray, folder: Path) -> Path:
    """Contours half a voxel around each class in each slice, and one inside for each hole."""
    regions: dict[str, list[np.ndarray]] = {"BODY": []}
    for number, name in enumerate(CLASSES[1:], start=1):
        regions[name.upper()] = [
            np.c_[points - 1, np.full(len(points), k), np.ones(len(points))] @ affine[:3].T
            for k in range(numbers.shape[2])
            for points in find_contours(np.pad((numbers[..., k] == number).astype(float), 1), 0.5)
        ]
    return write_structures(folder / "contours.dcm", regions)


_ALL, _MOST = range(len(CLASSES)), range(1, len(CLASSES))

FORMS: dict[str, Callable[[np.ndarray, np.ndarray, Path], Any]] = {
    "floats": lambda n, a, f: _nifti(n.astype(np.float64), a, f / "label.nii.gz"),
    "one-hot, all classes": lambda n, a, f: _nifti(_one_hot(n, _ALL), a, f / "label.nii.gz"),
    "one-hot without background": lambda n, a, f: _nifti(_one_hot(n, _MOST, np.float32), a, f / "label.nii"),
    "one-hot of 0 and 255": lambda n, a, f: _nifti(_one_hot(n, _MOST) * 255, a, f / "label.nii.gz"),
    "one-hot vectors": lambda n, a, f: _nifti(_one_hot(n, _ALL)[:, :, :, None], a, f / "label.nii.gz"),
    "one-hot NRRD": lambda n, a, f: _nrrd(_one_hot(n, _MOST), a, f / "label.nrrd"),
    "one-hot MetaImage": lambda n, a, f: _itk(_one_hot(n, _ALL), a, f / "label.mha"),
    "probabilities": lambda n, a, f: _nifti(_probabilities(n, _ALL), a, f / "label.nii.gz"),
    "probabilities without background": lambda n, a, f: _nifti(_probabilities(n, _MOST), a, f / "label.nii.gz"),
    "a file a class": _a_file_each,
    "a file an object": _a_file_an_object,
    "RTSTRUCT": _structures,
}
