"""Labels that clients submit: refused, naming what is wrong, or turned into class numbers on their image's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from PIL import Image

from lib.names import refusing
from lib.served_model import ServedModel
from medsaga.nifti import write_nifti
from medsaga.reading import PICTURES, Grid, ReadingError, open_image, suffix_of
from medsaga.reading.labels import class_numbers, whole_numbers

__all__ = ["CheckedLabel", "check_label", "counts_by_value", "read_label", "write_label"]


@dataclass(frozen=True)
class CheckedLabel:
    """A label that can be learnt from.

    Attributes:
        values: class numbers, uint8, of the image's shape.
        grid: of the image.
        models: names of the served models that it fits.
        labels: number of voxels by class name, of the classes that are there.
        as_is: whether the file that came holds just this; else :func:`write_label` makes one that does.
        warnings: what the annotator should know.
    """

    values: np.ndarray
    grid: Grid
    models: tuple[str, ...]
    labels: dict[str, int]
    as_is: bool
    warnings: tuple[str, ...]


def check_label(
    label_path: str | Path,
    image_path: str | Path,
    models: Mapping[str, ServedModel],
    label_info: Sequence[Mapping[str, Any]] | None = None,
    name: str = "label",
) -> CheckedLabel:
    """Check a label against its image and the classes of the served models.

    What the values mean: with ``label_info`` each value is a segment with a name, and is changed to that class's
    number. Slicer numbers the segments that it exports by their order in ``label_info``; its ``idx`` counts also those
    that it leaves out (background, scribbles), so it is used only where values go beyond the order. OHIF gives each
    its ``segmentIndex``. Without ``label_info`` values are class numbers, in whatever form a bundle takes them, see
    :mod:`medsaga.reading.labels`.

    Args:
        label_path: NIfTI, NRRD, a picture, or OHIF's ``.bin`` of raw uint8, first axis fastest.
        image_path: file or DICOM folder.
        models: those whose classes are allowed; those of another dimension than the image are left out.
        label_info: segments as the client names them.
        name: is named in errors.

    Raises:
        HTTPException: 422 with what is wrong and what would be right.
    """
    with refusing(image_path, f"{name}: its image"):
        image = open_image(image_path).grid
    fitting = {key: m for key, m in models.items() if m.dimension in (len(image.shape), image.rank)}
    if not fitting:
        raise HTTPException(422, f"{name}: no served model works on {image.rank}-D images, as its image is.")
    raw, as_is = read_label(Path(label_path), image, name)
    counts = counts_by_value(raw, name)
    present = [value for value in counts if value > 0]
    warnings = []
    if not present:
        warnings.append(f"{name}: no voxel is labelled; the whole image is background.")
    named = _named_values(label_info, present)
    if named:
        mapping, fitting = _by_name(present, named, fitting, name)
    else:
        mapping, fitting, notices = _by_number(present, fitting, name)
        warnings += notices
    table = np.zeros(max(counts) + 1, dtype=np.uint8)
    table[list(mapping)] = list(mapping.values())
    values = table[raw]
    first = next(iter(fitting.values()))
    voxels = {number: sum(counts[v] for v in present if mapping[v] == number) for number in mapping.values()}
    labels = {key: voxels[number] for key, number in first.labels.items() if number in voxels}
    as_is = as_is and all(old == new for old, new in mapping.items())
    return CheckedLabel(values, image, tuple(fitting), labels, as_is, tuple(warnings))


def write_label(label: CheckedLabel, image_path: str | Path, folder: Path, stem: str) -> Path:
    """Write a label as a file of its own, on the image's grid: PNG for a picture, else NIfTI.

    Returns:
        path of the file, ``folder/stem`` with a suffix.
    """
    if suffix_of(image_path) in PICTURES:
        path = folder / f"{stem}.png"
        Image.fromarray(np.ascontiguousarray(label.values.T)).save(path)
    else:
        path = folder / f"{stem}.nii.gz"
        write_nifti(label.values, label.grid.affine, path)
    return path


def read_label(path: Path, image: Grid, name: str) -> tuple[np.ndarray, bool]:
    """Read a label on the voxels of its image.

    Args:
        path: NIfTI, NRRD (``.seg.nrrd`` of one layer), a picture, or OHIF's ``.bin``.
        image: grid of the image. A label with other directions of its axes on the same voxels is turned.
        name: is named in errors.

    Returns:
        whole numbers of the image's shape, and whether other readers see the same in the file.

    Raises:
        HTTPException: 422 with what is wrong and what would be right.
    """
    if path.suffix == ".bin":
        values = np.fromfile(path, dtype=np.uint8)
        if values.size != np.prod(image.shape):
            raise HTTPException(
                422,
                f"{name}: {values.size} bytes, but its image has the shape {image.shape}, {int(np.prod(image.shape))} "
                "voxels; expected one byte for each.",
            )
        return values.reshape(image.shape, order="F"), False
    with refusing(path, name):
        label = open_image(path, label=True)
        if label.grid.channels != 1:
            raise HTTPException(
                422, f"{name}: {label.grid.channels} channels; expected one class number for each voxel."
            )
        turn = _turn(label.grid, image)
        grid = label.grid if turn is None else _turned(label.grid, turn)
        if grid.rank != image.rank or grid.shape[: grid.rank] != image.shape[: image.rank]:
            raise HTTPException(
                422, f"{name}: it has the shape {grid.shape}, its image {image.shape}; they must be equal."
            )
        apart = image.voxels_apart(grid)
        if not apart <= 0.5:
            raise HTTPException(
                422,
                f"{name}: by its header it lies up to {apart:.1f} voxels away from its image; give both the same "
                "affine (origin, spacing and directions).",
            )
        raw = label.load()
        values = whole_numbers(raw, path)
    as_is = turn is None and raw.dtype.kind in "iu" and grid.shape == image.shape and grid.placed == image.placed
    if suffix_of(path) in PICTURES:
        as_is = as_is and _plain_grey(path)
    if turn is not None:
        values = apply_orientation(values, turn)
    return values.reshape(image.shape), as_is and suffix_of(path) != ".seg.nrrd"


def _turn(label: Grid, image: Grid) -> np.ndarray | None:
    """How a label's axes have to be permuted and flipped to run as its image's, for nibabel; None where they do."""
    if not (label.placed and image.placed and len(label.shape) == len(image.shape) == 3):
        return None
    turn = io_orientation(np.linalg.inv(image.affine) @ label.affine)
    return None if (turn == [[0, 1], [1, 1], [2, 1]]).all() else turn


def _turned(grid: Grid, turn: np.ndarray) -> Grid:
    shape = tuple(grid.shape[axis] for axis in np.argsort(turn[:, 0]))
    return replace(grid, shape=shape, affine=grid.affine @ inv_ornt_aff(turn, grid.shape))


def _plain_grey(path: Path) -> bool:
    """Whether all readers see the same in a picture: of a palette some return the colours."""
    with Image.open(path) as picture:
        return picture.mode in ("L", "I;16")


def counts_by_value(values: np.ndarray, name: str) -> dict[int, int]:
    """Number of voxels by value, counted a slice at a time.

    Raises:
        HTTPException: 422 for negative values, and others that are no class numbers or segments.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise HTTPException(422, f"{name}: values from {low} to {high}; class numbers are 0 to 255.")
    counts = np.zeros(high + 1, dtype=np.int64)
    for index in range(values.shape[-1]):
        counts += np.bincount(values[..., index].ravel().astype(np.uint16), minlength=high + 1)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _named_values(label_info: Sequence[Mapping[str, Any]] | None, present: Sequence[int]) -> dict[int, str]:
    """Names by value of the file; empty where the client names nothing."""
    segments = [s for s in label_info or () if isinstance(s, Mapping) and s.get("name")]
    if segments and all(isinstance(s.get("segmentIndex"), int) for s in segments):
        return {s["segmentIndex"]: str(s["name"]) for s in segments}
    if max(present, default=0) > len(segments) and all(isinstance(s.get("idx"), int) for s in segments):
        return {s["idx"]: str(s["name"]) for s in segments}
    return {position: str(s["name"]) for position, s in enumerate(segments, start=1)}


def _by_name(
    present: Sequence[int], named: Mapping[int, str], models: Mapping[str, ServedModel], name: str
) -> tuple[dict[int, int], dict[str, ServedModel]]:
    """Class numbers by value of the file, and the models that give the segments these numbers."""
    unnamed = [v for v in present if v not in named]
    if unnamed:
        raise HTTPException(
            422, f"{name}: its values {unnamed[:8]} have no name; named are {', '.join(named.values())} (label_info)."
        )
    mappings = {}
    for key, model in models.items():
        numbers = {_plain(label): number for label, number in model.labels.items()}
        if all(_plain(named[v]) in numbers for v in present):
            mappings[key] = {v: numbers[_plain(named[v])] for v in present}
    if not mappings:
        classes = "; ".join(_classes(key, m) for key, m in models.items())
        segments = ", ".join(repr(named[v]) for v in present)
        raise HTTPException(
            422, f"{name}: its segments {segments} are not all classes of one served model; rename them. {classes}."
        )
    mapping = next(iter(mappings.values()))
    return mapping, {key: models[key] for key, other in mappings.items() if other == mapping}


def _by_number(
    present: Sequence[int], models: Mapping[str, ServedModel], name: str
) -> tuple[dict[int, int], dict[str, ServedModel], tuple[str, ...]]:
    """Class numbers by value of the file where no client names them, the models of these classes, and notices."""
    mappings, notices = {}, {}
    for key, model in models.items():
        try:
            numbers, notices[key] = class_numbers(np.array(present, dtype=int), model.num_classes, name)
        except ReadingError:
            continue
        mappings[key] = dict(zip(present, numbers.tolist()))
    if not mappings:
        classes = "; ".join(_classes(key, m) for key, m in models.items())
        raise HTTPException(
            422, f"{name}: its values {present[:8]} are not all classes of one served model. {classes}."
        )
    first = next(iter(mappings))
    return mappings[first], {k: models[k] for k in mappings if mappings[k] == mappings[first]}, notices[first]


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")


def _classes(key: str, model: ServedModel) -> str:
    return f"{key} has " + ", ".join(f"{number} {name}" for name, number in {"background": 0, **model.labels}.items())
