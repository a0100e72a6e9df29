"""Labels that clients submit: refused, naming what is wrong, or turned into class numbers on their image's grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from PIL import Image

from lib.labels.grid import read_label
from lib.labels.naming import Meaning, fitting_models, meaning
from lib.served_model import ServedModel
from medsaga.nifti import write_nifti
from medsaga.reading import PICTURES, Grid, ReadingError, suffix_of
from medsaga.reading.labels import check_labelled_slices

__all__ = ["CheckedLabel", "check_label", "counts_by_value", "write_label"]


@dataclass(frozen=True)
class CheckedLabel:
    """A label that can be learnt from.

    Attributes:
        values: class numbers, uint8, of the image's shape.
        grid: of the image.
        meaning: what the values are, and the models that it fits.
        voxels: number of voxels by class name.
        as_is: whether the submitted file holds exactly this; else :func:`write_label` makes one that does.
    """

    values: np.ndarray
    grid: Grid
    meaning: Meaning
    voxels: dict[str, int]
    as_is: bool = False


def check_label(
    label_path: str | Path, image: Grid, models: Mapping[str, ServedModel], info: Mapping[str, Any], name: str
) -> CheckedLabel:
    """Check a label against its image and the classes of the served models.

    Args:
        label_path: NIfTI, NRRD, a picture, or OHIF's ``.bin`` of raw uint8, first axis fastest.
        image: grid of its image.
        models: those whose classes are allowed; those of another dimension than the image are left out.
        info: of the client, which may name the values, see :mod:`lib.labels.naming`, and say by ``labelled_slices``
            which slices it has labelled, by number along the image's third axis: only these are learnt from.
        name: is named in errors.

    Raises:
        HTTPException: 422 with what is wrong and what would be right.
    """
    fitting = fitting_models(models, image)
    if not fitting:
        raise HTTPException(422, f"{name}: its image is {image.rank}-D, but no served model works on such images.")
    _check_slices(info.get("labelled_slices"), image, name)
    raw, as_is = read_label(Path(label_path), image, name)
    counts = counts_by_value(raw, name)
    found = meaning([value for value in counts if value], info, fitting, name)
    table = np.zeros(max(counts) + 1, dtype=np.uint8)
    table[list(found.numbers)] = list(found.numbers.values())
    as_is = as_is and all(old == new for old, new in found.numbers.items())
    voxels = Counter()
    for value, number in found.numbers.items():
        voxels[number] += counts[value]
    by_name = {name: voxels[number] for number, name in found.classes.items()}
    return CheckedLabel(table[raw], image, found, by_name, as_is)


def _check_slices(slices: Any, image: Grid, name: str) -> None:
    if slices is None:
        return
    try:
        check_labelled_slices(slices, image.shape[2] if len(image.shape) == 3 else 0, name)
    except ReadingError as err:
        raise HTTPException(422, str(err)) from err


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


def counts_by_value(values: np.ndarray, name: str) -> dict[int, int]:
    """Number of voxels by value, counted a slice at a time.

    Raises:
        HTTPException: 422 for negative values, and for values that are neither class numbers nor segments.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise HTTPException(422, f"{name}: its values go from {low} to {high}; class numbers are 0 to 255.")
    counts = np.zeros(high + 1, dtype=np.int64)
    for index in range(values.shape[-1]):
        counts += np.bincount(values[..., index].ravel().astype(np.uint16), minlength=high + 1)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
