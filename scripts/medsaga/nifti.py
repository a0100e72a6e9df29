"""NIfTI files as other programs expect them."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from medsaga.reading import ReadingError
from medsaga.reading.dicom import open_dicom

__all__ = ["write_nifti", "write_series"]

logger = logging.getLogger(__name__)


def write_nifti(values: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write an image with its affine as sform (of scanner coordinates) and the nearest rotation as qform.

    Some programs read only the one, others only the other. MONAI's ``NibabelWriter`` writes the sform alone, and drops
    a last axis of one voxel.

    Args:
        values: (W, H) or (W, H, D), of a type that NIfTI knows.
        affine: (4, 4), from voxels to mm in RAS.
        path: ``.nii`` or ``.nii.gz``.
    """
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_series(folder: Path, path: Path) -> None:
    """Write a series' instances as one NIfTI image on exactly their grid: a volume, or 2-D for a projection (X-ray).

    Args:
        folder: with the instances.
        path: of the file to write.

    Raises:
        ReadingError: they are no regular volume, with the reason.
    """
    series = open_dicom(folder)
    for notice in series.notices:
        logger.warning(notice)
    if series.grid.channels != 1:
        raise ReadingError(f"{folder}: it is a colour image; it must be a series of grey values.")
    write_nifti(series.load(), series.grid.affine, path)
