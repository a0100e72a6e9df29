"""Labels in which each class, or each object of a class, has a file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .image import Grid, ImageFile, ReadingError
from .labels import whole_numbers
from .layers import Layers, class_of, needed
from .names import JPEGS, suffix_of
from .open import open_image

__all__ = ["open_class_files"]


def open_class_files(
    value: Mapping[str, Any], class_names: Sequence[str] | None, image: Grid | None = None
) -> ImageFile:
    """A label with a file, or a list of files, for each class, see :func:`~medsaga.reading.label_forms.open_label`.

    Every voxel of a file that is not 0 has the class. If the file holds probabilities from 0 to 1, these are the voxels
    of at least 0.5; in a JPEG, whose edges are blurred, those above half of its largest value.

    Args:
        value: a path or a list of paths by the name of their class; names of no class are left out.
        class_names: of all classes, background first.
        image: grid of the image, for a label without any file.

    Raises:
        FileNotFoundError: a file is not there.
        ReadingError: naming the file that has another size or place than the first, or cannot be read.
    """
    files = {
        str(name): [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        for name, paths in value.items()
    }
    first = next((path for paths in files.values() for path in paths), None)
    names = needed(class_names, first or ", ".join(files) or "a label without a file", "a label of one file a class")
    by_class: dict[int, list[Path]] = {}
    for name, paths in files.items():
        number = class_of(name, names)
        if number:
            by_class.setdefault(number, []).extend(paths)
    if first is None or not any(by_class.values()):
        if image is None:
            raise ReadingError(
                "A label that has no file for any class needs its image: all voxels of that image are background."
            )
        empty = partial(np.zeros, image.shape, np.uint8)
        strange = [name for name in files if class_of(name, names) is None]
        notices = ()
        if strange:
            notices = (
                f"{first or strange[0]}: the label names {', '.join(strange)}, but none of the classes "
                f"{', '.join(names[1:])}; all its voxels become background.",
            )
        return ImageFile(replace(image, channels=1), empty, notices)
    opened = {path: open_image(path, label=True) for paths in by_class.values() for path in paths}
    path, grid = next((path, file.grid) for path, file in opened.items())
    for other, file in opened.items():
        _check_same(other, file.grid, path, grid)
    notices = tuple(notice for file in opened.values() for notice in file.notices)
    load = partial(_load, {number: by_class[number] for number in sorted(by_class)}, opened, names)
    return ImageFile(grid, load, notices)


def _check_same(path: Path, grid: Grid, first: Path, wanted: Grid) -> None:
    if grid.channels != 1:
        raise ReadingError(f"{path}: it has {grid.channels} channels; expected 1, the mask of one class.")
    if grid.shape != wanted.shape:
        raise ReadingError(
            f"{path}: its shape is {grid.shape}, but {first} of the same label has the shape {wanted.shape}; they must "
            "be equal."
        )
    if (apart := wanted.voxels_apart(grid)) > 0.5:
        raise ReadingError(
            f"{path}: by its header it lies up to {apart:.1f} voxels away from {first} of the same label; give both "
            "the same affine (origin, spacing and directions)."
        )


def _load(by_class: Mapping[int, list[Path]], opened: Mapping[Path, ImageFile], names: Sequence[str]) -> np.ndarray:
    first = next(iter(opened))
    layers = Layers(opened[first].grid.shape, names, first)
    for number, paths in by_class.items():
        mask = np.zeros(layers.label.shape, dtype=bool)
        for path in paths:
            mask |= _mask(path, opened[path].load())
        layers.add(number, mask)
    return layers.finished()


def _mask(path: Path, values: np.ndarray) -> np.ndarray:
    if suffix_of(path) in JPEGS:
        return values > values.max() / 2
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return values >= 0.5
    return whole_numbers(values, path) != 0
