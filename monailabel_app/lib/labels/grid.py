"""Read label files on the voxels of their image: other directions of axes are converted, other places are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from fastapi import HTTPException
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from PIL import Image

from lib.names import refusing
from medsaga.reading import PICTURES, Grid, open_image, suffix_of
from medsaga.reading.labels import whole_numbers

__all__ = ["read_label"]


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
                f"{name}: it has {values.size} bytes, but its image has the shape {image.shape}, "
                f"{int(np.prod(image.shape))} voxels; expected one byte for each.",
            )
        return values.reshape(image.shape, order="F"), False
    with refusing(path, name):
        label = open_image(path, label=True)
        if label.grid.channels != 1:
            raise HTTPException(
                422, f"{name}: it has {label.grid.channels} channels; expected one class number for each voxel."
            )
        turn = _turn(label.grid, image)
        grid = label.grid if turn is None else _turned(label.grid, turn)
        if grid.rank != image.rank or grid.shape[: grid.rank] != image.shape[: image.rank]:
            raise HTTPException(
                422, f"{name}: it has the shape {grid.shape}, but its image {image.shape}; they must be equal."
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
