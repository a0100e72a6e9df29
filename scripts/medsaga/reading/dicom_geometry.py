"""Where DICOM slices lie, and whether they make one regular volume. All lengths in mm, positions in DICOM's LPS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as PydicomSequence

from .dicom_files import DicomFile, numbers, whole
from .image import Grid, ReadingError

__all__ = ["Slice", "alike", "grid_of", "is_projection", "plane_of", "slices_of", "turned"]

_COSINES = 1e-3  # scanners round direction cosines, and some let them jitter from slice to slice
_OFF_PLACE = 0.2  # largest distance of a slice from its place, as a part of a voxel
_PROJECTIONS = ("CR", "DX", "MG", "RG", "PX", "IO", "RF", "XA")
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of pixels: an instance, or a frame of one.

    Attributes:
        file, frame: where its pixels are; the first frame is 0.
        size: columns, rows.
        position: of the first pixel's centre, (3,); None without a place in the patient.
        axes: directions of growing column and row index, (2, 3).
        spacing: between columns, between rows; None where it is not given.
        thickness: of the slice; None where it is not given.
        rescale: slope and intercept as given, each None where it is absent.
    """

    file: DicomFile
    frame: int
    size: tuple[int, int]
    position: np.ndarray | None
    axes: np.ndarray | None
    spacing: np.ndarray | None
    thickness: float | None
    rescale: tuple[float | None, float | None]


def slices_of(file: DicomFile) -> list[Slice]:
    """The planes of an image file.

    Raises:
        ReadingError: unusable numbers, or frames whose place is not given.
    """
    if "MOSAIC" in file.text("ImageType").upper().split("\\"):
        raise ReadingError(
            f"{file.path}: this is a mosaic, with all slices of a volume side by side in one image; convert it first, "
            f"for example with dcm2niix."
        )
    per_frame = _items(file, file.header, "PerFrameFunctionalGroupsSequence")
    if file.frames == 1 and not per_frame:
        return [_slice(file, 0, [file.header])]
    kind = file.sop_class.name.removesuffix(" Storage") or "DICOM file"
    if not per_frame:
        raise ReadingError(
            f"{file.path}: this {kind} has {file.frames} frames without positions in the patient, like a film or "
            f"projections; give single frames, or a volume as enhanced multi-frame."
        )
    if len(per_frame) != file.frames:
        raise ReadingError(
            f"{file.path}: NumberOfFrames is {file.frames}, but PerFrameFunctionalGroupsSequence describes "
            f"{len(per_frame)}; is the file complete?"
        )
    shared = [group for g in _items(file, file.header, "SharedFunctionalGroupsSequence") for group in _groups(file, g)]
    found = [_slice(file, n, [*_groups(file, group), *shared]) for n, group in enumerate(per_frame)]
    lacking = [n for n, s in enumerate(found) if s.position is None or s.axes is None]
    if lacking and len(found) > 1:
        raise ReadingError(
            f"{file.path}: in this {kind} {len(lacking)} of {len(found)} frames (the first is frame {lacking[0] + 1}) "
            f"have no PlanePositionSequence or PlaneOrientationSequence, so the frames make no volume."
        )
    return found


def _groups(file: DicomFile, group: Dataset) -> list[Dataset]:
    names = ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
    return [item for name in names for item in _items(file, group, f"{name}Sequence")]


def _items(file: DicomFile, source: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; none where it is absent."""
    found = source.get(keyword)
    if found is None or isinstance(found, PydicomSequence):
        return list(found or [])
    raise ReadingError(f"{file.path}: its {keyword} is not a sequence of items; is the file damaged?")


def _slice(file: DicomFile, frame: int, sources: list[Dataset]) -> Slice:
    def first(keyword: str, count: int) -> np.ndarray | None:
        found = (numbers(file, keyword, count, source) for source in sources if keyword in source)
        return next((value for value in found if value is not None), None)

    position, axes = first("ImagePositionPatient", 3), first("ImageOrientationPatient", 6)
    spacing, spacing_of = first("PixelSpacing", 2), "PixelSpacing"
    if position is None and spacing is None:
        spacing, spacing_of = first("ImagerPixelSpacing", 2), "ImagerPixelSpacing"
    if spacing is not None and min(spacing) <= 0:
        raise ReadingError(f"{file.path}: its {spacing_of} is {spacing.tolist()}; both must be above 0 mm.")
    axes = None if axes is None else axes.reshape(2, 3)
    if position is not None and axes is not None:
        if np.abs(axes @ axes.T - np.eye(2)).max() > 2 * _COSINES:
            raise ReadingError(
                f"{file.path}: its ImageOrientationPatient is {axes.ravel().round(5).tolist()}; rows and columns must "
                f"be unit vectors at right angles."
            )
        if spacing is None:
            raise ReadingError(f"{file.path}: has a position in the patient, but no PixelSpacing.")
    slope, intercept, thickness = (first(k, 1) for k in ("RescaleSlope", "RescaleIntercept", "SliceThickness"))
    if slope is not None and slope[0] == 0:
        raise ReadingError(f"{file.path}: its RescaleSlope is 0, which makes all values equal.")
    return Slice(
        file,
        frame,
        (whole(file, "Columns"), whole(file, "Rows")),
        position,
        axes,
        None if spacing is None else spacing[::-1],  # DICOM gives the distance between rows first
        None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
        (None if slope is None else float(slope[0]), None if intercept is None else float(intercept[0])),
    )


def is_projection(image: Slice) -> bool:
    """Whether an image is an X-ray that has no place in the patient."""
    return image.position is None and image.file.text("Modality") in _PROJECTIONS


def turned(first: Slice, second: Slice) -> bool:
    """Whether two slices lie in planes of different direction."""
    if first.axes is None or second.axes is None:
        return first.axes is not second.axes
    return float(np.abs(first.axes - second.axes).max()) > _COSINES


def alike(first: Slice, second: Slice) -> bool:
    """Whether two slices could be of one volume: direction, size, spacing and frame of reference, within tolerance."""
    frames = {s.file.text("FrameOfReferenceUID") for s in (first, second)} - {""}
    return not (
        turned(first, second)
        or first.size != second.size
        or (first.position is None) != (second.position is None)
        or (first.spacing is None) != (second.spacing is None)
        or (first.spacing is not None and not np.allclose(first.spacing, second.spacing, rtol=1e-3, atol=0))
        or len(frames) > 1
    )


def grid_of(where: Path, slices: Sequence[Slice]) -> tuple[Grid, list[Slice]]:
    """The grid that slices of one geometry lie on, and the slices in its order, along rows × columns.

    Places come from ImagePositionPatient alone: thickness, SpacingBetweenSlices, dates and numbers are often wrong.
    (A single slice has no other measure of its third axis than SliceThickness.)

    Raises:
        ReadingError: they do not form a regular volume; the text says why.
    """
    first = slices[0]
    unplaced = [s for s in slices if s.position is None or s.axes is None]
    if not unplaced:
        return _volume(where, slices)
    if len(slices) > 1:
        name = unplaced[0].file.path
        raise ReadingError(
            f"{where}: {len(unplaced)} of the {len(slices)} images of this series (for example {name.name}) have no "
            f"ImagePositionPatient or ImageOrientationPatient, so they make no volume; name a single file instead."
        )
    x, y = (1.0, 1.0) if first.spacing is None else first.spacing
    unit = "pixels" if first.spacing is None else "mm"
    return Grid(first.size, np.diag([-x, -y, 1.0, 1.0]), placed=False, unit=unit), [first]


def _volume(where: Path, slices: Sequence[Slice]) -> tuple[Grid, list[Slice]]:
    mean = np.mean([s.axes for s in slices], axis=0)
    left, _, right = np.linalg.svd(mean, full_matrices=False)
    rows = left @ right  # the nearest pair of unit vectors at right angles
    normal = np.cross(*rows)
    spacing = np.mean([s.spacing for s in slices], axis=0)
    slices = sorted(slices, key=lambda s: float(s.position @ normal))
    places = np.array([s.position for s in slices])
    if len(slices) == 1:
        origin, gap = places[0], slices[0].thickness or 1.0
    else:
        gap, start = _regular(where, slices, places @ normal)
        across = places - np.outer(places @ normal, normal)
        _straight(where, slices, across, gap, min(spacing))
        origin = across.mean(axis=0) + start * normal
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([rows[0] * spacing[0], rows[1] * spacing[1], normal * gap])
    affine[:3, 3] = origin
    affine[:3] *= _LPS_TO_RAS[:, None]
    return Grid((*slices[0].size, len(slices)), affine), slices


def _regular(where: Path, slices: Sequence[Slice], heights: np.ndarray) -> tuple[float, float]:
    """Distance of slices that lie on a regular grid along their normal, and where it starts."""
    gaps = np.diff(heights)
    apart = gaps[gaps > 1e-3]
    usual = float(np.median(apart)) if apart.size else 0.0
    double = np.flatnonzero(gaps <= max(0.1 * usual, 1e-3))
    if double.size:
        pair = " and ".join(_name(slices[k]) for k in (double[0], double[0] + 1))
        here = len(heights) - len(double)
        each = f"{len(heights) / here:g} at each of {here} positions" if len(heights) % here == 0 else "several at some"
        raise ReadingError(
            f"{where}: has more than one image at a position ({each}; {pair}, for example): time points, echoes, "
            f"b-values or copies. Put one set into a folder of its own."
        )
    index = np.arange(len(heights))
    gap, start = (float(v) for v in np.polyfit(index, heights, 1))
    if np.abs(heights - (start + gap * index)).max() <= _OFF_PLACE * gap:
        return gap, start
    odd = np.flatnonzero(np.abs(gaps - usual) > 0.1 * usual)
    k = int(odd[0]) if odd.size else int(np.abs(gaps - usual).argmax())
    missing = round(gaps[k] / usual) - 1
    cause = "the spacing changes"
    if 1 <= len(odd) <= 0.2 * len(gaps) + 1 and missing > 0:
        cause = f"{missing} may be missing there" if len(odd) == 1 else "slices may be missing"
    raise ReadingError(
        f"{where}: its slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart; the first break is after slice "
        f"{k + 1} of {len(slices)} ({_name(slices[k])}): {cause}. Use "
        f"the complete series, or resample it to one spacing."
    )


def _straight(where: Path, slices: Sequence[Slice], across: np.ndarray, gap: float, pixel: float) -> None:
    """Refuse slices that are shifted against each other: all equally by a tilted gantry, or single ones."""
    off = np.linalg.norm(across - across.mean(axis=0), axis=1).max()
    if off <= _OFF_PLACE * pixel:
        return
    index = np.arange(len(across))
    drift, start = np.polyfit(index, across, 1)
    aside = np.linalg.norm(across - start - np.outer(index, drift), axis=1)
    if aside.max() > _OFF_PLACE * pixel:
        k = int(aside.argmax())
        raise ReadingError(
            f"{where}: its slices are shifted against each other: slice {k + 1} of {len(slices)} ({_name(slices[k])}) "
            f"lies {aside[k]:.2f} mm beside the line of the others. Resample the series to a straight grid first."
        )
    angle = np.degrees(np.arctan2(np.linalg.norm(drift), gap))
    raise ReadingError(
        f"{where}: its slices are shifted against each other, by up to {off:.2f} mm from a line at right angles to "
        f"them: the gantry was tilted by {angle:.1f} degrees. A mask on a straight grid would not lie on these slices, "
        f"so it could not become a DICOM SEG or be shown voxel by voxel. Straighten the series first: dcm2niix, for "
        f"example, writes an untilted NIfTI."
    )


def _name(s: Slice) -> str:
    return f"frame {s.frame + 1}" if s.file.frames > 1 else s.file.path.name


def plane_of(grid: Grid) -> str:
    """Plane of a grid's slices: ``axial``, ``coronal`` or ``sagittal``, with the angle where they are oblique."""
    if not grid.placed:
        return "projection"
    normal = np.abs(grid.affine[:3, 2]) / np.linalg.norm(grid.affine[:3, 2])
    angle = np.degrees(np.arccos(min(1.0, normal.max())))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] + (f", {angle:.0f}° oblique" if angle >= 1 else "")
