"""Images and labels compared by the place in the patient, and what the store holds."""

from __future__ import annotations

import numpy as np
import pydicom
import requests
import SimpleITK as sitk  # noqa: N813

from .series import RAS_TO_LPS, Series
from .services import STORE


def affine_of(image: sitk.Image) -> np.ndarray:
    """RAS affine of an ITK image."""
    rank = image.GetDimension()
    affine = np.eye(4)
    affine[:rank, :rank] = np.array(image.GetDirection()).reshape(rank, rank) * np.array(image.GetSpacing())
    affine[:rank, 3] = image.GetOrigin()
    return RAS_TO_LPS @ affine


def at_series(file, series: Series) -> np.ndarray:
    """Values of a file at the voxels of the series that was made, found by their places in the patient."""
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image).T
    if array.ndim == 2:
        return array
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1).reshape(-1, 3)
    mine = series.world(affine_of(image), index)
    result = np.full(series.voxels.shape, -9999, array.dtype if array.dtype.kind == "i" else int)
    result[tuple(mine.T)] = array.ravel()
    return result


def write_label(path, values: np.ndarray, series: Series) -> str:
    """A label on the voxels of the series that was made, slices in its own order."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T).astype(np.uint8))
    if values.ndim == 3:
        lps = RAS_TO_LPS @ series.affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return str(path)


def stored_segs(study: str) -> list[pydicom.Dataset]:
    """Segmentation objects of a study, oldest first."""
    found = []
    for instance in requests.post(
        f"{STORE}/tools/find",
        json={"Level": "Instance", "Query": {"Modality": "SEG", "StudyInstanceUID": study}},
        timeout=30,
    ).json():
        data = requests.get(f"{STORE}/instances/{instance}/file", timeout=30).content
        found.append(pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)))
    return sorted(found, key=lambda s: s.ContentDate + s.ContentTime)
