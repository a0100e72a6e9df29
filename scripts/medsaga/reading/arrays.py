"""Array files: the .npz of "MedSAM on Laptop" (CVPR 2024), and the .npz slices and .h5 volumes of Synapse (BTCV)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .image import Grid, ImageFile, ReadingError, check_size, reason
from .names import suffix_of

__all__ = ["array_shapes", "is_volume", "open_array", "read_array", "spacing_of"]

_PAIRS = (("imgs", "gts"), ("image", "label"))  # names of the two arrays, in either kind of file
_KNOWN = ("imgs", "gts", "image", "label", "boxes", "spacing")  # other arrays are ignored


def open_array(path: Path, label: bool = False) -> ImageFile:
    """Read and check the headers of the arrays of a case: an image and, in the same file, its label.

    Files name no orientation: rows are taken to go from front to back, columns from right to left and slices from
    bottom to top, as the challenge's volumes lie. A volume's origin is 0.

    Args:
        path: .npz or .h5 with ``imgs``, and ``gts`` and ``spacing`` (x, y, z, in mm) where they are known, or with
            ``image`` and ``label``: (D, H, W), (H, W) or in colours (H, W, 3).
        label: open the label instead of the image.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: naming the file and what is wrong with it.

    Source:
        Data formats of the challenge "Segment Anything in Medical Images on Laptop" (CVPR 2024), and of TransUNet
        (arXiv 2102.04306), which SAMed (arXiv 2304.13785) uses.
    """
    shapes = array_shapes(path)
    image, mask = next((pair for pair in _PAIRS if pair[0] in shapes), ("", ""))
    if not image:
        raise ReadingError(
            f"{path}: it has no array 'imgs' or 'image'; expected imgs (with gts and spacing, if they are known), or "
            "image and label."
        )
    if label and mask not in shapes:
        raise ReadingError(f"{path}: it has no array {mask!r}, so it holds no label.")
    volume = is_volume(path, image, shapes, mask)
    check_size(path, shapes[image])
    rank = 3 if volume else 2
    spacing = spacing_of(path, read_array(path, "spacing") if "spacing" in shapes else None)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2] if volume else 1, 1])
    channels = 3 if not volume and len(shapes[image]) == 3 and not label else 1
    unit = "mm" if volume or "spacing" in shapes else "pixels"
    shape = shapes[image][:rank][::-1]
    grid = Grid(shape, affine, channels, placed=volume, unit=unit)
    return ImageFile(grid, partial(_load, path, mask if label else image, rank))


def _load(path: Path, name: str, rank: int) -> np.ndarray:
    """(W, H[, D]), colours in a last axis."""
    values = read_array(path, name)
    axes = tuple(range(rank))[::-1]
    return values.transpose(*axes, *range(rank, values.ndim))


def is_volume(path: str | Path, image: str, shapes: Mapping[str, tuple[int, ...]], label: str) -> bool:
    """Whether an array of three axes has slices, not colours: decided by its boxes or label, else by its last axis.

    Args:
        path: of the file, for errors.
        image: name of the image's array.
        shapes: of all arrays by name.
        label: name of the label's array, which need not be there.

    Raises:
        ReadingError: the shapes do not fit each other.
    """
    pixels, boxes, mask = shapes[image], shapes.get("boxes"), shapes.get(label)
    if boxes is not None:
        if len(boxes) != 2 or boxes[1] not in (4, 6):
            raise ReadingError(
                f"{path}: boxes has the shape {boxes}; expected (N, 4) for an image, (N, 6) for a volume."
            )
        volume = boxes[1] == 6
    elif mask is not None:
        volume = len(mask) == 3
    else:
        volume = len(pixels) == 3 and pixels[-1] != 3
    if not (len(pixels) == 3 if volume else len(pixels) == 2 or (len(pixels) == 3 and pixels[-1] == 3)):
        wanted = "(D, H, W)" if volume else "(H, W, 3) or (H, W)"
        raise ReadingError(f"{path}: {image} has the shape {pixels}; its boxes or {label} fit {wanted} only.")
    if mask is not None and mask != (pixels if volume else pixels[:2]):
        raise ReadingError(f"{path}: {label} has the shape {mask}, but {image} has {pixels}; they must fit.")
    return volume


def spacing_of(path: str | Path, spacing: np.ndarray | None) -> np.ndarray:
    """Lengths of a voxel's sides (x, y, z) in mm; 1 where the file gives none.

    Raises:
        ReadingError: they are not three positive numbers.
    """
    given = np.ones(3) if spacing is None else np.asarray(spacing)
    if given.shape != (3,) or given.dtype.kind not in "iuf" or not (np.isfinite(given) & (given > 0)).all():
        raise ReadingError(f"{path}: spacing is {given.tolist()}; expected three lengths in mm, of x, y and z.")
    return given.astype(np.float64)


def array_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of each array of a file by its name, from their headers alone.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: it is not such a file, is damaged, or holds something other than arrays of numbers.
    """
    with _opened(path) as file:
        return _headers(path, file)


def read_array(path: str | Path, name: str) -> np.ndarray:
    """One array of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: it has no such array, is damaged, or its header gives a size over the limit (``check_size``).
    """
    with _opened(path) as file:
        headers = _headers(path, file)
        if name not in headers:
            raise ReadingError(f"{path}: it has no array {name!r}.")
        if 0 not in headers[name]:  # an array may be empty, as the boxes of a file without objects
            check_size(path, headers[name])
        return file[name][()]


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """An open file of arrays; every error names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        with np.load(path, allow_pickle=False) if suffix_of(path) == ".npz" else h5py.File(path, "r") as file:
            yield file
    except ReadingError:
        raise
    except Exception as err:  # zipfile, zlib, NumPy and HDF5 each raise their own error for a damaged file
        raise ReadingError(
            f"{path}: its format is not the one that its suffix says, it is damaged, or it holds something other than "
            f"arrays of numbers: {reason(err)}."
        ) from err


def _headers(path: str | Path, file: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays with known names, which hold numbers; links and arrays in other files are left out."""
    if isinstance(file, h5py.File):
        # links, external storage and virtual arrays lead to other files
        own = [name for name in _KNOWN if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        arrays = {name: file[name] for name in own if isinstance(file[name], h5py.Dataset)}
        headers = {n: (a.shape, a.dtype) for n, a in arrays.items() if a.shape and not (a.external or a.is_virtual)}
    else:
        with zipfile.ZipFile(path) as members:
            headers = {name: _npy_header(members, name) for name in _KNOWN if name in file.files}
    for name, (_, dtype) in headers.items():
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise ReadingError(
                f"{path}: it is damaged or holds something other than arrays of numbers: {name} has values of type "
                f"{dtype}."
            )
    return {name: shape for name, (shape, _) in headers.items()}


def _npy_header(members: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with members.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](member)
    return shape, dtype
