"""Masks as the files that clients are answered with."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monailabel.transform.writer import Writer

from medsaga.nifti import write_nifti
from medsaga.reading import PICTURES, suffix_of

__all__ = ["write_answer"]

_NIFTI = (".nii.gz", ".nii")
_VOLUMES = (*_NIFTI, ".nrrd", ".seg.nrrd", ".mha")
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


def write_answer(request: Mapping[str, Any], mask: MetaTensor, image: MetaTensor, dimension: int) -> str:
    """Write a mask on the grid of the image file.

    Args:
        request: ``image`` is the file; ``result_extension`` the format, that of the image unless given (PNG for any
            picture, NIfTI where the image is DICOM); ``result_dtype`` (``uint8`` unless given) and ``result_compress``
            as MONAI Label has them.
        mask: class numbers (1, W, H) or (1, W, H, D), in the order of the file's voxels.
        image: that was segmented, with the file's affine as ``original_affine``.
        dimension: of the model's images; a mask of 2-D ones is 2-D.

    Returns:
        the file's path.

    Raises:
        HTTPException: 422 for another format.
    """
    suffix = suffix_of(request["image"])
    usual = ".png" if suffix in PICTURES else suffix if suffix in _VOLUMES else ".nii.gz"
    extension = request.get("result_extension") or usual
    values = np.asarray(mask[0]).astype(request.get("result_dtype") or "uint8")
    values = values.reshape(values.shape[:dimension])
    known = _VOLUMES if values.ndim == 3 else (*_VOLUMES, *_LOSSLESS)
    if extension not in known:
        raise HTTPException(422, f"result_extension is {extension!r}; it must be one of {', '.join(known)}.")
    affine = to_affine_nd(3, np.asarray(image.meta["original_affine"], dtype=np.float64))
    if extension in _NIFTI:  # MONAI Label's writer leaves them to ITK, which knows no sheared axes there
        path = Path(tempfile.gettempdir()) / f"{uuid.uuid4().hex}{extension}"
        write_nifti(values, affine, path)
        return str(path)
    written = {**request, "result_extension": extension, "pred": values, "pred_meta_dict": {"affine": affine}}
    return Writer(label="pred")(written)[0]
