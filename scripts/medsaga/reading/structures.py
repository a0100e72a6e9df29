"""Regions of a DICOM structure set (RTSTRUCT): contours in space, drawn on an image's voxels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
from skimage.draw import polygon

from medsaga.dicom_seg import label_key

from .image import Grid, ReadingError

__all__ = ["region_mask", "region_names"]

_LOGGER = logging.getLogger(__name__)
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_PLANE = 0.25  # of a voxel; a contour farther away was drawn on other slices
_DECIMALS = 3  # of voxels: removes the rounding error of a contour that runs through voxel centres


def region_names(structures: pydicom.Dataset) -> dict[int, str]:
    """Name by the number of a region."""
    return {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in structures.get("StructureSetROISequence", [])}


def region_mask(structures: pydicom.Dataset, name: str, image: Grid, path: Path) -> np.ndarray:
    """The voxels whose centres are inside the contours of all regions of one name.

    Contours of a region in one slice are filled by the even-odd rule: a contour inside another is a hole, and a contour
    that runs there and back along a line (keyhole) also has a hole. A contour need not be axial, but it must lie along
    two axes of the image. Nothing is interpolated between slices.

    Args:
        structures: with the contours.
        name: of the regions, compared as :func:`~medsaga.dicom_seg.label_key` has it.
        image: grid with three axes.
        path: of the file, for errors.

    Returns:
        bool, of the grid's shape.

    Raises:
        ReadingError: a contour lies across the image's slices, between them or outside of the image.

    Source:
        DICOM PS3.3, C.8.8.6 (ROI Contour Module).
    """
    if len(image.shape) != 3 or not image.placed:
        raise ReadingError(f"{path}: its contours have positions in the patient, but its image has none.")
    mask = np.zeros(image.shape, dtype=bool)
    numbers = [number for number, roi in region_names(structures).items() if label_key(roi) == label_key(name)]
    to_voxels = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])  # from LPS
    for region in structures.get("ROIContourSequence", []):
        if int(region.ReferencedROINumber) not in numbers:
            continue
        own = np.zeros(image.shape, dtype=bool)
        other_kinds, slices = set(), set()
        for contour in region.get("ContourSequence", []):
            kind = str(contour.get("ContourGeometricType", "CLOSED_PLANAR"))
            if kind not in _CLOSED:
                other_kinds.add(kind)
                continue
            points = np.asarray(contour.ContourData, dtype=np.float64)
            if points.size == 0 or points.size % 3 or not np.isfinite(points).all():
                raise ReadingError(
                    f"{path}: a contour of {name!r} has {points.size} numbers; expected 3 for each point."
                )
            points = np.c_[points.reshape(-1, 3), np.ones(points.size // 3)]
            axis, index = _draw(own, (points @ to_voxels.T)[:, :3], name, path)
            slices.add((axis, index))
        if other_kinds:
            _LOGGER.warning("%s: contours of %r that enclose nothing (%s) are left out.",
                            path, name, ", ".join(sorted(other_kinds)))  # fmt: skip
        _warn_of_gaps(slices, name, path)
        mask |= own
    return mask


def _draw(own: np.ndarray, points: np.ndarray, name: str, path: Path) -> tuple[int, int]:
    """Invert the inside of a closed contour; returns the axis at right angles to the contour, and the slice."""
    axis = int(np.argmin(np.ptp(points, axis=0)))
    across = points[:, axis]
    index = round(float(across.mean()))
    if np.abs(across - index).max() > _OFF_PLANE:
        raise ReadingError(
            f"{path}: a contour of {name!r} lies {np.abs(across - index).max():.2f} voxels away from the image's "
            "nearest slice; it was drawn on another series. Give the image that it was drawn on."
        )
    if not 0 <= index < own.shape[axis]:
        raise ReadingError(
            f"{path}: a contour of {name!r} lies on slice {index}, but the image has {own.shape[axis]} slices; it was "
            "drawn on another series. Give the image that it was drawn on."
        )
    plane = np.moveaxis(own, axis, 0)[index]
    first, second = np.delete(points, axis, axis=1).round(_DECIMALS).T
    rows, columns = polygon(first, second, plane.shape)
    plane[rows, columns] ^= True
    return axis, index


def _warn_of_gaps(slices: set[tuple[int, int]], name: str, path: Path) -> None:
    """Warn if only every second or third slice is drawn: slices that the drawing tool would fill in stay empty."""
    if len({axis for axis, _ in slices}) != 1 or len(slices) < 3:
        return
    steps = np.diff(sorted(index for _, index in slices))
    if steps.min() > 1:
        _LOGGER.warning("%s: %r has contours only on every %d. slice; the slices between stay background.",
                        path, name, int(steps.min()))  # fmt: skip
