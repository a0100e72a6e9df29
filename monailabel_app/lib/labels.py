"""Labels that clients submit: refused, naming what is wrong, or turned into class numbers on their image's grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from fastapi import HTTPException
from PIL import Image

from lib.images import PICTURES, Grid, read_grid, read_values, reason
from lib.served_model import ServedModel

__all__ = ["CheckedLabel", "check_label", "write_label"]

_T = TypeVar("_T")


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
    its ``segmentIndex``. Without ``label_info`` values are class numbers.

    Args:
        label_path: NIfTI, NRRD, a picture, or OHIF's ``.bin`` of raw uint8, first axis fastest.
        image_path: file or DICOM folder.
        models: those whose classes are allowed; those of another dimension than the image are left out.
        label_info: segments as the client names them.
        name: is named in errors.

    Raises:
        HTTPException: 422 with what is wrong and what would be right.
    """
    image = read_grid(image_path)
    fitting = {key: m for key, m in models.items() if m.dimension in (len(image.shape), image.rank)}
    if not fitting:
        raise HTTPException(422, f"{name}: no served model works on {image.rank}-D images, as its image is.")
    raw, as_is = _read(Path(label_path), image, name)
    values, counts = _class_numbers(raw, name)
    as_is = as_is and np.issubdtype(raw.dtype, np.integer)
    present = [int(v) for v in np.flatnonzero(counts) if v > 0]

    named = _named_values(label_info, present)
    if named:
        mapping, fitting = _by_name(present, named, fitting, name)
        as_is = as_is and all(old == new for old, new in mapping.items())
        table = np.zeros(256, dtype=np.uint8)
        table[list(mapping)] = list(mapping.values())
        values = table[values]
        counts = np.bincount(table, weights=counts, minlength=256).astype(np.int64)
    else:
        known = {key: m for key, m in fitting.items() if set(present) <= set(m.labels.values())}
        if not known:
            classes = "; ".join(_classes(key, m) for key, m in fitting.items())
            raise HTTPException(
                422, f"{name}: its values {present[:8]} are not all classes of one served model. {classes}."
            )
        fitting = known
    first = next(iter(fitting.values()))
    labels = {key: int(counts[value]) for key, value in first.labels.items() if counts[value]}
    warnings = () if present else (f"{name}: no voxel is labelled; the whole image is background.",)
    return CheckedLabel(values, image, tuple(fitting), labels, as_is, warnings)


def write_label(label: CheckedLabel, image_path: str | Path, folder: Path, stem: str) -> Path:
    """Write a label as a file of its own, on the image's grid: PNG for a picture, else NIfTI.

    Returns:
        path of the file, ``folder/stem`` with a suffix.
    """
    if str(image_path).lower().endswith(PICTURES):
        path = folder / f"{stem}.png"
        Image.fromarray(np.ascontiguousarray(label.values.T)).save(path)
    else:
        path = folder / f"{stem}.nii.gz"
        nib.save(nib.Nifti1Image(label.values, label.grid.affine), path)
    return path


def _read(path: Path, image: Grid, name: str) -> tuple[np.ndarray, bool]:
    """Values as they are in the file, of the image's shape, and whether other readers see the same in it."""
    if path.suffix == ".bin":
        values = np.fromfile(path, dtype=np.uint8)
        if values.size != np.prod(image.shape):
            raise HTTPException(
                422,
                f"{name}: {values.size} bytes, but its image has the shape {image.shape}, {int(np.prod(image.shape))} "
                "voxels; expected one byte for each.",
            )
        return values.reshape(image.shape, order="F"), False
    if path.name.endswith(".seg.nrrd"):
        raise HTTPException(
            422,
            f"{name}: a segmentation with layers (.seg.nrrd); expected one class number for each voxel. In Slicer's "
            "settings, MONAI Label, set the file extension to .nii.gz.",
        )
    grid = _readable(read_grid, path, name)
    if grid.rank != image.rank or grid.shape[: grid.rank] != image.shape[: image.rank]:
        raise HTTPException(422, f"{name}: it has the shape {grid.shape}, its image {image.shape}; they must be equal.")
    apart = image.voxels_apart(grid)
    if not apart <= 0.5:
        raise HTTPException(
            422,
            f"{name}: by its header it lies up to {apart:.1f} voxels away from its image; give both the same affine "
            "(origin, spacing and directions).",
        )
    values = _readable(read_values, path, name)
    as_is = not str(path).lower().endswith(PICTURES) or _plain_grey(path)
    if grid.channels == 3 and values.shape[-1] == 3 and (values == values[..., :1]).all():
        values, as_is = values[..., 0], False  # a mask drawn in a paint program
    elif grid.channels != 1:
        raise HTTPException(422, f"{name}: {grid.channels} channels; expected one class number for each voxel.")
    as_is = as_is and grid.shape == image.shape and (grid.affine is None) == (image.affine is None)
    return values.reshape(image.shape), as_is


def _plain_grey(path: Path) -> bool:
    """Whether all readers see the same in a picture: of a palette some return the colours."""
    with Image.open(path) as picture:
        return picture.mode in ("L", "I;16")


def _readable(read: Callable[[Path], _T], path: Path, name: str) -> _T:
    try:
        return read(path)
    except Exception as err:
        raise HTTPException(422, f"{name}: it cannot be read as an image, or not to its end: {reason(err)}.") from err


def _class_numbers(raw: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values as uint8, and how many voxels have each (256,), a slice at a time: a CT is checked in a CT's memory."""
    if raw.dtype.kind not in "biuf":
        raise HTTPException(422, f"{name}: values of type {raw.dtype}; expected class numbers.")
    values = np.empty_like(raw, dtype=np.uint8, subok=False)  # in the order of the file's, which is faster
    counts = np.zeros(256, dtype=np.int64)
    for index in range(raw.shape[-1]):
        part = raw[..., index]
        if np.issubdtype(part.dtype, np.floating):
            if not np.isfinite(part).all():
                raise HTTPException(422, f"{name}: NaN or infinite values; expected class numbers.")
            if (part != np.rint(part)).any():
                example = part[part != np.rint(part)][0]
                raise HTTPException(
                    422,
                    f"{name}: values such as {example:g} are no class numbers; expected whole numbers (was it "
                    "resampled with other than nearest neighbour?).",
                )
        if part.min() < 0 or part.max() > 255:
            raise HTTPException(
                422, f"{name}: values from {part.min():g} to {part.max():g}; class numbers are 0 to 255."
            )
        values[..., index] = part
        counts += np.bincount(values[..., index].ravel(), minlength=256)
    return values, counts


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


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")


def _classes(key: str, model: ServedModel) -> str:
    return f"{key} has " + ", ".join(f"{number} {name}" for name, number in {"background": 0, **model.labels}.items())
