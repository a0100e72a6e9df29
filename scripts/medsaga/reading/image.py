"""An image as its file describes it: where its voxels are, and a way to read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from monai.data.utils import to_affine_nd

__all__ = ["Grid", "ImageFile", "ReadingError", "check_size", "max_image_bytes", "reason"]

_LONGEST = 2000  # letters of an error


class ReadingError(ValueError):
    """A file that cannot be used. The text names the file, what is wrong with it, and what would be right.

    Content of a damaged header in the text cannot control a terminal or flood a log: characters that do not print
    become ``?``, and a long text is cut.
    """

    def __init__(self, text: str) -> None:
        printable = "".join(c if c.isprintable() else "?" for c in text)
        super().__init__(printable if len(printable) <= _LONGEST else f"{printable[:_LONGEST]} ...")


@dataclass(frozen=True)
class Grid:
    """Where an image's voxels are.

    Attributes:
        shape: (W, H) or (W, H, D), in the order of the file's axes; a trailing axis of length 1 is kept.
        affine: (4, 4), from voxels to mm in RAS (right, anterior and superior are positive). Pictures and projections
            are taken to lie in a plane with columns from right to left and rows from front to back.
        channels: values in each voxel.
        placed: whether the image has a place in the patient. Pictures (PNG, JPEG) and projections (X-rays) have none,
            and their origin means nothing.
        unit: of lengths: ``mm``, or ``pixels`` for pictures.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    channels: int = 1
    placed: bool = True
    unit: str = "mm"

    @property
    def rank(self) -> int:
        """2 for an image of one slice, else 3 (or more, which nothing here can use)."""
        shape = self.shape
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        return len(shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Lengths of the voxel's sides in ``unit``, in the order of ``shape``."""
        return tuple(np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0).tolist())

    def voxels_apart(self, other: Grid) -> float:
        """Largest distance in space between corners of two grids of one shape, in units of the smallest voxel side.

        0 where one of them has no place in the patient.
        """
        if not (self.placed and other.placed):
            return 0.0
        first, second = (to_affine_nd(self.rank, grid.affine) for grid in (self, other))
        corners = np.array([[*corner, 1] for corner in np.ndindex(*[2] * self.rank)]).T
        corners[:-1] *= np.array(self.shape[: self.rank])[:, None] - 1
        distance = np.linalg.norm(((first - second) @ corners)[:-1], axis=0).max()
        return float(distance / np.linalg.norm(first[:-1, :-1], axis=0).min())

    def covered_by(self, other: Grid) -> float:
        """Share of this volume's voxels whose centres lie in voxels of another."""
        columns, rows, slices = np.ogrid[tuple(slice(n) for n in self.shape)]
        to_other = np.linalg.inv(other.affine) @ self.affine
        inside = 0
        for index in slices.ravel():  # one slice at a time, so that it takes the memory of one slice
            within = np.ones(self.shape[:2], dtype=bool)
            for (a, b, c, d), length in zip(to_other, other.shape):
                at = (a * columns + b * rows)[..., 0] + c * index + d
                within &= (at >= -0.5) & (at <= length - 0.5)
            inside += int(within.sum())
        return inside / int(np.prod(self.shape))


@dataclass(frozen=True)
class ImageFile:
    """An image whose header has been read and checked.

    Attributes:
        grid: of its voxels.
        load: decodes the values to an array of the grid's shape, with several channels in a last axis. Raises
            :class:`ReadingError` for a truncated or damaged file.
        notices: sentences, each naming the file, of what was left out or corrected.
        modality: DICOM's (``CT``, ``MR``, ``DX``), empty for other formats.
    """

    grid: Grid
    load: Callable[[], np.ndarray] = field(repr=False)
    notices: tuple[str, ...] = ()
    modality: str = ""


def max_image_bytes() -> int:
    """Largest image that is read, in bytes of its values as float32: ``MEDSAGA_MAX_IMAGE_GB``, 2 by default."""
    return int(float(os.environ.get("MEDSAGA_MAX_IMAGE_GB", "2")) * 10**9)


def check_size(path: object, shape: tuple[int, ...], channels: int = 1) -> None:
    """Refuse an image that would not fit, from its header alone.

    Raises:
        ReadingError: an axis of length 0 or less, or more values than :func:`max_image_bytes` holds as float32.
    """
    if min(shape, default=0) < 1:
        raise ReadingError(f"{path}: its header gives the shape {shape}; every axis must have at least one voxel.")
    size = 4 * channels * int(np.prod(shape, dtype=object))
    if size > max_image_bytes():
        raise ReadingError(
            f"{path}: its header gives the shape {shape}, {size / 1e9:.1f} GB as float32; the limit is "
            f"{max_image_bytes() / 1e9:g} GB (MEDSAGA_MAX_IMAGE_GB)."
        )


def reason(error: BaseException) -> str:
    """A library's message on a file that it cannot read, as one line: of ITK's many lines, the last says most."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__
