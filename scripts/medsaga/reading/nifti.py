"""Headers of NIfTI files (.nii, .nii.gz), by nibabel."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from .image import Grid, ReadingError
from .stored import StoredVolume, decoded

__all__ = ["nifti_header"]

_KINDS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the code of the unit: unknown, metre, mm, micrometre

_quiet = logging.Logger("nifti")  # header errors that nibabel corrects by itself are refused here or do not matter
_quiet.addHandler(logging.NullHandler())


def nifti_header(path: Path) -> StoredVolume:
    """Read the header.

    Raises:
        ReadingError: what it says cannot be used.
        Exception: nibabel's, where it cannot read the header.
    """
    compression = "zlib" if path.name.lower().endswith(".gz") else ""
    raw = b""
    with open(path, "rb") as file:
        pieces = decoded(path, file, compression)
        while len(raw) < max(_KINDS) and (piece := next(pieces, b"")):
            raw += piece
    order = next((o for o in ("little", "big") if int.from_bytes(raw[:4], o) in _KINDS), None)
    if order is None:
        raise ReadingError(f"{path}: it does not begin like a NIfTI file; it is of another format, or damaged.")
    size = int.from_bytes(raw[:4], order)
    if len(raw) < size:
        raise ReadingError(f"{path}: it ends within its header; it is truncated.")
    header = _KINDS[size](raw[:size], endianness=order, check=False)
    magic = header["magic"].item()
    if not magic.startswith((b"n+1", b"n+2")):
        raise ReadingError(
            f"{path}: its header says {magic!r}; it must say 'n+1' or 'n+2', NIfTI in one file. Save it as one .nii "
            "file."
        )
    _check_pixdim(path, header)
    offset = float(header["vox_offset"])
    if not np.isfinite(offset):
        raise ReadingError(f"{path}: its header places the values at byte {offset}; it is damaged.")
    header.check_fix(logger=_quiet, error_level=40)
    slope, intercept = header.get_slope_inter()
    affine, notices = _affine(path, header)
    return StoredVolume(
        shape=tuple(int(n) for n in header.get_data_shape()),
        dtype=header.get_data_dtype(),
        affine=affine,
        file=path,
        skip=int(offset),
        compression=compression,
        slope=None if (slope, intercept) == (1, 0) else slope,
        intercept=intercept or 0.0,
        notices=notices,
    )


def _check_pixdim(path: Path, header: nib.Nifti1Header) -> None:
    """Where the affine is made from pixdim, refuse a voxel size of 0, which nibabel would change to 1 mm."""
    axes = min(max(int(header["dim"][0]), 1), 3)
    spacing = header["pixdim"][1 : 1 + axes].astype(float)
    if header["sform_code"] <= 0 and not (np.isfinite(spacing) & (spacing != 0)).all():
        raise ReadingError(
            f"{path}: its header gives voxels of {' × '.join(f'{s:g}' for s in spacing)} mm (pixdim); save it again "
            "with the spacing that it was acquired with."
        )


def _affine(path: Path, header: nib.Nifti1Header) -> tuple[np.ndarray, tuple[str, ...]]:
    notices = []
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform > 0 and qform > 0:
        shape = tuple(max(int(n), 1) for n in header["dim"][1:4])
        try:
            apart = Grid(shape, affine).voxels_apart(Grid(shape, header.get_qform()))
        except (ValueError, nib.spatialimages.HeaderDataError, np.linalg.LinAlgError):
            apart = np.inf
        if not apart <= 0.5:
            notices.append(
                f"{path}: its two affines, sform and qform, lie up to {apart:.1f} voxels apart; sform is used, but "
                "other programs may use qform."
            )
    elif sform <= 0 and qform <= 0:
        notices.append(
            f"{path}: its header gives no affine (sform and qform have code 0), so its place is unknown; its axes are "
            "assumed to go from right to left, back to front and bottom to top."
        )
    code = int(header["xyzt_units"]) & 7
    if code not in _MM:
        raise ReadingError(f"{path}: its unit of lengths has the code {code} (xyzt_units); expected mm, 2.")
    if _MM[code] != 1:
        affine[:3] *= _MM[code]
        notices.append(
            f"{path}: its lengths are in {'metres' if code == 1 else 'micrometres'}; they are converted to mm."
        )
    return affine, tuple(notices)
