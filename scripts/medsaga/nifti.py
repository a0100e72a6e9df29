"""NIfTI files as other programs expect them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["write_nifti"]


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
