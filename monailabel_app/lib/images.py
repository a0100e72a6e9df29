"""Files as images: their grid from the header alone, and whether everything that the header promises is there."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage
from PIL import Image

__all__ = ["PICTURES", "Grid", "check_image", "is_nifti", "max_image_bytes", "read_grid", "read_values", "reason"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # without a place in space

_CHUNK = 2**20


def max_image_bytes() -> int:
    """Largest image that is taken, in bytes of the file and of its values: ``MEDSAGA_MAX_IMAGE_GB``, 2 by default."""
    return int(float(os.environ.get("MEDSAGA_MAX_IMAGE_GB", "2")) * 10**9)


@dataclass(frozen=True)
class Grid:
    """Where an image's voxels are.

    Attributes:
        shape: (W, H) or (W, H, D), in the order of the file's axes; a trailing axis of length 1 is kept.
        affine: (4, 4), from voxels to mm in RAS; None for pictures, which have no place in space.
        channels: values in each voxel.
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None
    channels: int = 1

    @property
    def rank(self) -> int:
        """2 for an image of one slice, else 3 (or more, which nothing here can use)."""
        shape = self.shape
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        return len(shape)

    def voxels_apart(self, other: Grid) -> float:
        """Largest distance in space between corners of two grids of one shape, in units of the smallest voxel side."""
        if self.affine is None or other.affine is None:
            return 0.0
        first, second = (to_affine_nd(self.rank, grid.affine) for grid in (self, other))
        corners = np.array([[*corner, 1] for corner in np.ndindex(*[2] * self.rank)]).T
        corners[:-1] *= np.array(self.shape[: self.rank])[:, None] - 1
        distance = np.linalg.norm(((first - second) @ corners)[:-1], axis=0).max()
        return float(distance / np.linalg.norm(first[:-1, :-1], axis=0).min())


def is_nifti(path: str | Path) -> bool:
    """By its name."""
    return str(path).endswith((".nii", ".nii.gz"))


def read_grid(path: str | Path) -> Grid:
    """The grid of an image file or DICOM folder; of a file only the header is read.

    NIfTI is left to nibabel: ITK reads a truncated one without a word.

    Raises:
        Exception: of the format's library, when it is no image.
    """
    path = str(path)
    if os.path.isdir(path):
        volume = LoadImage(image_only=True)(path)
        return Grid(tuple(volume.shape), np.asarray(volume.affine, dtype=np.float64))
    if is_nifti(path):
        image = nib.load(path)
        return Grid(tuple(image.shape), np.asarray(image.affine, dtype=np.float64))
    if path.lower().endswith(PICTURES):
        with Image.open(path) as picture:
            return Grid(picture.size, None, len(picture.getbands()))
    io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise ValueError("it is of no format that ITK knows")
    io.SetFileName(path)
    io.ReadImageInformation()
    rank = io.GetNumberOfDimensions()
    axes = np.stack([np.array(io.GetDirection(i)) * io.GetSpacing(i) for i in range(rank)], axis=1)
    affine = np.eye(rank + 1)
    affine[:-1, :-1], affine[:-1, -1] = axes, [io.GetOrigin(i) for i in range(rank)]
    affine = to_affine_nd(3, affine)
    affine[:2] *= -1  # ITK's LPS to RAS
    return Grid(tuple(int(io.GetDimensions(i)) for i in range(rank)), affine, int(io.GetNumberOfComponents()))


def read_values(path: str | Path) -> np.ndarray:
    """Values of an image file, of the shape of its grid: (W, H) or (W, H, D); colours in a last axis."""
    path = str(path)
    if is_nifti(path):
        return np.asanyarray(nib.load(path).dataobj)
    if path.lower().endswith(PICTURES):
        with Image.open(path) as picture:
            return np.asarray(picture).swapaxes(0, 1)
    return np.asarray(itk.imread(path)).T


def reason(error: Exception) -> str:
    """What a library says of a file it cannot read, in one line: ITK's errors have many, the last says most."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def check_image(path: str | Path) -> Grid:
    """Read an image file to its end, in little memory where the format allows.

    Returns:
        its grid.

    Raises:
        ValueError: no image, truncated, neither 2-D nor a volume, or with more values than :func:`max_image_bytes`.
    """
    try:
        grid = read_grid(path)
        if is_nifti(path):
            _read_nifti(path)
        elif str(path).lower().endswith(PICTURES):
            with Image.open(path) as picture:
                picture.load()
        else:
            itk.imread(str(path))
    except Exception as err:
        raise ValueError(f"it cannot be read as an image, or not to its end: {reason(err)}") from err
    if grid.rank not in (2, 3) or 0 in grid.shape:
        raise ValueError(f"it has the shape {grid.shape}; expected a 2-D image or one volume")
    if grid.rank == 3 and grid.channels != 1:
        raise ValueError(f"each voxel has {grid.channels} values; expected one")
    return grid


def _read_nifti(path: str | Path) -> None:
    data = nib.load(path).dataobj
    expected = int(data.offset) + int(np.prod(data.shape, dtype=np.int64)) * data.dtype.itemsize
    if expected > max_image_bytes():
        raise ValueError(f"{expected / 1e9:.1f} GB of values, more than {max_image_bytes() / 1e9:g} GB")
    found = 0
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
        # past the values to the end, where gzip's checksum stands; a file that goes on for much longer is not read
        while found <= expected + 2**24 and (chunk := file.read(_CHUNK)):
            found += len(chunk)
    if found < expected:
        raise ValueError(f"{found} of the {expected} bytes are there that its header announces")
