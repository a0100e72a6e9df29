"""Labels in all common forms of storage, as class numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .class_files import open_class_files
from .dicom_labels import dicom_label_kind, open_dicom_label
from .image import Grid, ImageFile, ReadingError
from .labels import WHITE, whole_numbers
from .layers import Layers
from .open import open_image

__all__ = ["open_label"]


def open_label(value: Any, class_names: Sequence[str] | None = None, image: Grid | None = None) -> ImageFile:
    """Read and check the headers of a label; ``load()`` of the result gives whole numbers, in most forms class numbers.

    The form is recognised from ``value``:

    * a path: whole numbers of any meaning, one for each voxel;
    * a path to a file of several channels, one-hot: one for each of ``class_names``, or one for each but the first.
      With k channels a voxel gets the class with the largest value (the background if none is above 0); with k − 1
      channels, one whose value is at least 0.5;
    * a path to a DICOM segmentation (SEG) or structure set (RTSTRUCT), whose segments or regions have the classes'
      names;
    * a mapping from names of classes to a path, or a list of paths with an object of the class in each: every voxel
      that is not 0 has the class. A class without an entry has no voxels.

    Names are compared by :func:`~medsaga.dicom_seg.label_key`, and names of no class are left out. Where classes
    overlap, the later one in ``class_names`` is taken, with a notice.

    Args:
        value: path, or mapping of paths.
        class_names: of all classes, background first. Not needed for whole numbers.
        image: grid of the label's image, on which SEG, RTSTRUCT and a mapping without a file are drawn.

    Raises:
        FileNotFoundError: nothing is there.
        ReadingError: naming the file and what is wrong with it, or what has to be given.
    """
    if isinstance(value, Mapping):
        return open_class_files(value, class_names, image)
    if not isinstance(value, str | Path):
        raise ReadingError(
            f"{value}: a label must be one path, or for each class a path or a list of paths, not "
            f"{type(value).__name__}."
        )
    path = Path(value)
    if kind := dicom_label_kind(path):
        return open_dicom_label(path, kind, class_names, image)
    file = open_image(path, label=True)
    if file.grid.channels == 1:
        return replace(file, load=lambda: whole_numbers(file.load(), path))
    count = file.grid.channels
    if class_names is None:
        raise ReadingError(
            f"{path}: the label has {count} channels; expected one class number for each voxel. To read it as one-hot "
            "(one channel for each class), give ReadImaged the class_names."
        )
    if count not in (len(class_names), len(class_names) - 1):
        raise ReadingError(
            f"{path}: the label has {count} channels; expected one class number for each voxel, or one-hot "
            f"{len(class_names)} channels for the classes {', '.join(class_names)}, or {len(class_names) - 1} for all "
            "but the first."
        )
    one_channel = replace(file.grid, channels=1)
    return replace(file, grid=one_channel, load=lambda: _from_one_hot(path, file.load(), class_names))


def _from_one_hot(path: Path, values: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    low, high = float(values.min()), float(values.max())  # NaN shows in both
    white = high if high in WHITE and values.dtype.kind in "iu" else 1
    if not (low >= 0 and high <= white) or (white > 1 and not ((values == 0) | (values == white)).all()):
        raise ReadingError(
            f"{path}: the label has {values.shape[-1]} channels and values from {low:g} to {high:g}; expected in each "
            "channel 0 and 1, or probabilities from 0 to 1, of one class."
        )
    layers = Layers(values.shape[:-1], class_names, path)
    if values.shape[-1] < len(class_names):
        for number in range(1, len(class_names)):
            layers.add(number, values[..., number - 1] >= 0.5 * white)
        return layers.finished()
    best = np.zeros(values.shape[:-1], dtype=values.dtype)
    for number in range(len(class_names)):
        # if values are equal, the later class is taken
        channel = values[..., number]
        mask = (channel >= best) & (channel > 0)
        layers.add(number, mask, overlaps=mask & (channel == best) if number else None)
        np.maximum(best, channel, out=best)
    return layers.finished()
