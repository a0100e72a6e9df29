"""Slices of a preprocessed case, in memory and in a file from which one slice takes one read."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from monai.utils import convert_to_tensor

from medsaga.failures import root_cause
from medsaga.transforms.cut_planes import Cut, cuts

from .case import files_of, inputs_of

__all__ = ["Slices", "classes_in", "read_slice", "slices_of", "trying_again", "write_slices"]

# a network file system's way to say that a file was replaced, or that its server did not answer
_PASSING = (errno.ESTALE, errno.EIO)

Result = TypeVar("Result")


class Slices(NamedTuple):
    """Slices of a case.

    Attributes:
        records: (D,), each ``image`` (C, H, W) float16, and, where the case has one, ``label`` (H, W) uint8. A volume
            that is not cut in the plane has no records (:func:`~medsaga.transforms.cuts`). Intensities are in [0, 1];
            there float16 has steps of at most 1/2048, finer than the 8 bits of SAM's training images.
        across: how these slices cross the acquired slices: the axis of a slice (0 rows, 1 columns) along which the
            acquired slices are stacked, and whether in reverse order. None if these are the acquired slices.
    """

    records: np.ndarray
    across: tuple[int, bool] | None


def slices_of(case: Mapping[str, Any], preprocessing: Callable) -> Slices:
    """Preprocess a case.

    Args:
        case: as :func:`~medsaga.data.case.inputs_of` takes it; its ``plane``, if it names one, is the one to cut in.
        preprocessing: see :func:`~medsaga.data.slice_cache.cache_cases`.

    Raises:
        ValueError: intensities outside [0, 1].
    """
    data, cut = preprocessing(inputs_of(case)), None
    if "plane" in case:
        data, cut = _cut(data, case["plane"])
    image = np.asarray(data["image"])
    is_volume = image.ndim == 4
    image = np.moveaxis(image, -1, 0) if is_volume else image[None]  # (C, H, W, D) → (D, C, H, W)
    # MONAI's scaling does not change an image whose two percentiles are equal; NaN or infinity cannot be trained on
    low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 1.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"{files_of(case)[0]}: intensities are from {low:g} to {high:g} after preprocessing; they must be from 0 "
            "to 1. Either nearly all of the image has one value (then scale it by other percentiles), or the "
            "preprocessing does not clip."
        )
    fields: list[tuple] = [("image", "<f2", image.shape[1:])]
    if "label" in case:
        label = np.asarray(data["label"])
        label = np.moveaxis(label[0], -1, 0) if is_volume else label
        fields.append(("label", "u1", label.shape[1:]))
    slices = np.empty(len(image), fields)
    slices["image"] = image
    if "label" in case:
        slices["label"] = label
    return Slices(slices, cut and _across(cut))


def _across(cut: Cut) -> tuple[int, bool] | None:
    axis = cut.permutation.index(2)  # the acquired slices lie along a volume's last axis
    return None if axis == 2 else (axis, axis in cut.flips)


def _cut(data: Mapping[str, torch.Tensor], plane: str) -> tuple[dict[str, torch.Tensor], Cut | None]:
    """Image (C, H, W, D) and label with the slices of a plane along the last axis; no slices if it is not cut in it.

    A 2-D image counts as axial.
    """
    image = data["image"]
    planes = {key: convert_to_tensor(data[key], track_meta=False) for key in ("image", "label") if key in data}
    if image.ndim == 3:
        none = {key: values[..., None][..., :0] for key, values in planes.items()}
        return (planes if plane == "axial" else none), None
    found = cuts(tuple(image.shape[1:]), getattr(image, "affine", None))
    cut = next((cut for cut in found if cut.plane == plane), None)
    return {key: values[..., :0] if cut is None else cut.turned(values) for key, values in planes.items()}, cut


def classes_in(slices: np.ndarray, num_classes: int) -> np.ndarray:
    """(D, k) bool: which classes each slice shows; without labels none."""
    if "label" not in slices.dtype.names:
        return np.zeros((len(slices), num_classes), bool)
    return np.stack([(slices["label"] == number).any(axis=(1, 2)) for number in range(num_classes)], axis=1)


def write_slices(path: Path, slices: np.ndarray) -> None:
    """Write slices as ``.npy``.

    Raises:
        OSError: the disk is full; half a file is left.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(slices))
        file.write(slices.view(np.uint8).data)  # NumPy's own tofile does not report a full disk


def read_slice(path: Path, index: int) -> np.void:
    """Read one slice.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged.
    """
    # read, not mapped: on a map a file system error would end the process, and each case would hold a file handle
    with path.open("rb", buffering=0) as raw:
        try:
            np.lib.format.read_magic(raw)
            (length,), _, dtype = np.lib.format.read_array_header_1_0(raw)
            raw.seek(range(length)[index] * dtype.itemsize, 1)
            return np.frombuffer(raw.read(dtype.itemsize), dtype, 1)[0]
        except ValueError as err:
            raise ValueError(f"{path} is damaged ({err}); delete it, and it is made again") from err


def trying_again(read: Callable[[], Result]) -> Result:
    """What ``read`` returns; it is called once more after a passing error of a network file system."""
    try:
        return read()
    except Exception as err:
        if getattr(root_cause(err), "errno", None) not in _PASSING:
            raise
        return read()
