"""What one case shows: a few numbers, so that those of ten thousand cases fit into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.ndimage import find_objects
from skimage.measure import label as components

from medsaga.reading import Grid
from medsaga.reading.dicom_geometry import plane_of
from medsaga.reading.labels import unlabelled

__all__ = ["PERCENTILES", "CaseFacts", "ClassFacts", "Intensities", "known_label", "measure"]

PERCENTILES = (0, 0.5, 1, 5, 50, 95, 99, 99.5, 99.9, 100)

_SAMPLE = 2**22  # number of an image's values that percentiles are taken from
_MANY_VALUES = 64  # a label with more values has no separate classes
_LISTED_VALUES = 4096
_MEASURED_SLICES = 9  # on which the objects of a class are measured


@dataclass(frozen=True)
class Intensities:
    """Values of one channel.

    Attributes:
        whole: :data:`PERCENTILES` of the image.
        inside: the same of the voxels with a class; None without one.
        background: share of the most frequent value among all values.
    """

    whole: tuple[float, ...]
    inside: tuple[float, ...] | None
    background: float


@dataclass(frozen=True)
class ClassFacts:
    """Where a class is and how large.

    Attributes:
        voxels: with the class.
        slices: that show it.
        column: of its centre, from 0 (left edge of the slice) to 1.
        row: of its centre, from 0 (top) to 1.
        diameter: equivalent diameter in pixels of its objects in a slice; half of its area is in objects of at least
            this size.
        largest: share of its voxels in its largest connected component.
    """

    voxels: int
    slices: int
    column: float
    row: float
    diameter: float
    largest: float = 0.0


@dataclass(frozen=True)
class CaseFacts:
    """What a case shows.

    Attributes:
        shape: rows, columns, slices as they are trained on; an image of one slice has 1.
        spacing: of these, in ``unit``.
        volume: whether it has a third axis.
        unit: ``mm``, or ``pixels`` of pictures.
        plane: in which its slices lie: ``axial``, ``coronal``, ``sagittal``, or ``projection`` without a place.
        thick: whether the slices are so far apart that the plane is that of the scanner.
        colour: whether it has three channels that differ.
        channels: of the image.
        intensities: of each channel.
        labelled: whether it has a label.
        partly: whether voxels of the label are not labelled (255); they count as background here.
        values: of the label besides 0.
        objects: files of the label that are one object each; 0 where the label is no such list.
        classes: by value, of labels with at most 64 values.
        foreground: all values besides 0 as one class; None where there is none.
        modality: DICOM's, of the image.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    volume: bool
    unit: str
    plane: str
    thick: bool
    colour: bool
    channels: int
    intensities: tuple[Intensities, ...]
    labelled: bool = False
    partly: bool = False
    values: tuple[int, ...] = ()
    objects: int = 0
    classes: dict[int, ClassFacts] = field(default_factory=dict)
    foreground: ClassFacts | None = None
    modality: str = ""


def measure(data: Mapping[str, torch.Tensor], objects: int = 0, modality: str = "") -> CaseFacts:
    """Facts of a case that has been read and turned.

    Args:
        data: ``image`` (C, H, W[, D]) and, where there is one, ``label`` (1, H, W[, D]) of whole numbers, as
            ``OrientSlicesd`` leaves them.
        objects: files of the label that are one object each.
        modality: of the image's header.
    """
    image = data["image"]
    values = image.numpy() if image.ndim == 4 else image.numpy()[..., None]
    grid = Grid(
        tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64), placed=image.meta.get("placed", True)
    )
    spacing = np.linalg.norm(grid.affine[:3, : image.ndim - 1], axis=0).tolist()
    spacing += [1.0] * (3 - len(spacing))
    label, partly = None, False
    if "label" in data:
        label = data["label"][0].numpy()
        label, partly = known_label(label if label.ndim == 3 else label[..., None])
    volume = image.ndim == 4
    plane = "projection" if not grid.placed else plane_of(grid).split(",")[0] if volume else "axial"
    facts = _label_facts(label) if label is not None else {}
    return CaseFacts(
        shape=values.shape[1:],
        spacing=tuple(spacing),
        volume=volume,
        unit=str(image.meta.get("unit", "mm")),
        plane=plane,
        thick=spacing[2] >= 1.5 * (1 - 1e-6) * max(spacing[:2]) or (volume and values.shape[3] == 1),
        colour=len(values) == 3 and not volume and not (np.ptp(values, axis=0) == 0).all(),
        channels=len(values),
        intensities=tuple(_intensities(channel, label) for channel in values),
        labelled=label is not None,
        partly=partly,
        objects=objects,
        modality=modality,
        **facts,
    )


def known_label(label: np.ndarray) -> tuple[np.ndarray, bool]:
    """A label in which unlabelled voxels have become background, and whether there are any."""
    unknown = unlabelled(label, _MANY_VALUES)
    return (label, False) if unknown is None else (np.where(unknown, 0, label), True)


def _intensities(channel: np.ndarray, label: np.ndarray | None) -> Intensities:
    sample = np.sort(_sample(channel))
    # lengths of runs of equal values: the most frequent one is the background of a masked or padded image
    edges = np.flatnonzero(np.diff(sample)) + 1
    runs = np.diff([0, *edges, len(sample)])
    inside = channel[label > 0] if label is not None else channel[:0].ravel()
    return Intensities(
        whole=tuple(np.percentile(sample, PERCENTILES).tolist()),
        inside=tuple(np.percentile(_sample(inside), PERCENTILES).tolist()) if inside.size else None,
        background=float(runs.max() / len(sample)),
    )


def _sample(values: np.ndarray) -> np.ndarray:
    """All values of an image; of a large image, evenly spread values."""
    return values.reshape(-1)[:: max(1, values.size // _SAMPLE)]


def _label_facts(label: np.ndarray) -> dict:
    present, numbers = np.unique(label, return_inverse=True)
    numbers = numbers.reshape(label.shape)
    values = [int(value) for value in present if value != 0]
    classes = {}
    if len(values) <= _MANY_VALUES:
        # only the box around each class, so that many classes take no longer than a few
        for index, box in enumerate(find_objects(numbers + 1)):
            if box is not None and present[index] != 0:
                classes[int(present[index])] = _class_facts(numbers[box] == index, box, label.shape)
    whole = find_objects((label != 0).astype(np.uint8))
    return {
        "values": tuple(values[:_LISTED_VALUES]),
        "classes": classes,
        "foreground": _class_facts(label[whole[0]] != 0, whole[0], label.shape) if whole else None,
    }


def _class_facts(mask: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> ClassFacts:
    voxels = int(mask.sum())
    rows, columns = mask.sum(axis=(1, 2)), mask.sum(axis=(0, 2))
    row = float(rows @ (np.arange(len(rows)) + box[0].start + 0.5)) / voxels / shape[0]
    column = float(columns @ (np.arange(len(columns)) + box[1].start + 0.5)) / voxels / shape[1]
    shown = np.flatnonzero(mask.any(axis=(0, 1)))
    measured = shown[np.linspace(0, len(shown) - 1, min(_MEASURED_SLICES, len(shown))).astype(int)]
    areas = np.concatenate([np.bincount(components(mask[..., index]).ravel())[1:] for index in measured])
    # half of the labelled area belongs to objects of this size or larger, so specks at edges have no effect
    areas = np.sort(areas)
    typical = areas[np.searchsorted(np.cumsum(areas), 0.5 * areas.sum())]
    largest = float(np.bincount(components(mask).ravel())[1:].max()) / voxels
    return ClassFacts(voxels, len(shown), column, row, float(2 * np.sqrt(typical / np.pi)), largest)
