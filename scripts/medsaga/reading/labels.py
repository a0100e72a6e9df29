"""Values of label files as class numbers, whatever form a tool has stored them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .image import ReadingError
from .names import JPEGS, suffix_of

__all__ = ["UNLABELLED", "WHITE", "check_labelled_slices", "class_numbers", "unlabelled", "whole_numbers"]

_TOLERANCE = 1e-3  # rounding error of whole numbers in tools that compute in float32
WHITE = (255, 65535)  # how paint programs and 8- or 16-bit masks store 1
_MAX_CLASS = 255
UNLABELLED = 255  # value of voxels that are not labelled


def whole_numbers(values: np.ndarray, name: str | Path) -> np.ndarray:
    """Integer values of a label: booleans become 0 and 1, floats within 1e-3 of whole numbers are rounded.

    Args:
        values: as the file stores them, of any shape.
        name: of the file, for errors.

    Raises:
        ReadingError: NaN, infinite or fractional values, or values of another kind.
    """
    values = np.asarray(values)
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind != "f":
        raise ReadingError(
            f"{name}: its values are of type {values.dtype}; expected class numbers, whole numbers from 0 on."
        )
    low, high = (float(extreme) for extreme in (values.min(), values.max()))  # NaN shows in both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadingError(f"{name}: it has NaN or infinite values; expected class numbers, whole numbers from 0 on.")
    if max(-low, high) > 2**31 - 1:
        raise ReadingError(
            f"{name}: its values go from {low:g} to {high:g}; expected class numbers, 0 to {_MAX_CLASS}."
        )
    whole = np.empty(values.shape, dtype=np.int32)
    for index in range(values.shape[-1]):  # one slice at a time, so that checking takes little memory
        part = values[..., index]
        rounded = np.rint(part)
        apart = np.abs(part - rounded) > _TOLERANCE
        if apart.any():
            raise ReadingError(
                f"{name}: values such as {part[apart].flat[0]:g} are no class numbers. Resample a mask by nearest "
                "neighbour; instead of probabilities, save the class with the largest one."
            )
        whole[..., index] = rounded
    return whole


def unlabelled(values: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Voxels that nobody has labelled: those of value 255, unless 255 may be a mask's 1, or a class.

    255 means "not labelled" in two cases: all other values are classes and at least one is not the background; or 255
    fills whole slices along an axis and occurs nowhere else, as in a volume of which only some slices are labelled.
    Otherwise a picture or volume of only 0 and 255 is a mask, and one of 85, 170 and 255 has three classes that are
    still to be mapped.

    Args:
        values: integers, of any shape.
        num_classes: including background.

    Returns:
        bool, of the shape of ``values``; None where all voxels are labelled.
    """
    there = values == UNLABELLED
    if num_classes > UNLABELLED or not there.any():
        return None
    others = values[~there]
    if others.any():
        return there if others.min() >= 0 and others.max() < num_classes else None
    for axis in range(values.ndim) if values.ndim > 2 else ():
        across = tuple(i for i in range(values.ndim) if i != axis)
        full = there.all(axis=across)
        if values.shape[axis] > 1 and not full.all() and (full == there.any(axis=across)).all():
            return there
    return None


def check_labelled_slices(slices: Any, count: int, name: str | Path) -> None:
    """Refuse a value that is not a list of the labelled slices of a volume.

    Args:
        slices: their numbers along the third axis.
        count: number of the volume's slices; 0 for an image without slices.
        name: of the label, for errors.

    Raises:
        ReadingError: it is not a list of such numbers, each once.
    """
    numbers = slices if isinstance(slices, list | tuple) else []
    right = all(type(number) is int and 0 <= number < count for number in numbers)
    if not numbers or not right or len(set(numbers)) < len(numbers):
        shown = list(numbers)[:8] if numbers else slices
        wanted = f"numbers from 0 to {count - 1}, each once" if count else "leave it out, as the image has no slices"
        raise ReadingError(
            f"{name}: labelled_slices is {shown}; it must be numbers of slices along the volume's third axis: {wanted}."
        )


def class_numbers(values: np.ndarray, num_classes: int, name: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers of whole-numbered label values, uint8.

    Where there is one class besides the background, 0 and 255 (or 65535) are taken for 0 and 1, with a notice.

    Args:
        values: integers, of any shape.
        num_classes: including background; class numbers are 0 to ``num_classes - 1``.
        name: of the file, for errors.

    Returns:
        Class numbers of the shape of ``values``, and notices.

    Raises:
        ReadingError: values outside the classes, with what to do about them.
    """
    present = np.unique(values).tolist()
    outside = [value for value in present if not 0 <= value < num_classes]
    if not outside:
        return values.astype(np.uint8), ()
    foreground = [value for value in present if value != 0]
    if num_classes == 2 and len(foreground) == 1 and foreground[0] in WHITE:
        return (values != 0).astype(np.uint8), (f"{name}: values 0 and {foreground[0]} are read as 0 and 1.",)
    raise ReadingError(
        f"{name}: label values {_listed(outside)} are outside the {num_classes} classes (0 = background to "
        f"{num_classes - 1}). {_remedy(foreground, num_classes, name)}"
    )


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _remedy(foreground: list[int], num_classes: int, name: str | Path) -> str:
    if suffix_of(name) in JPEGS:
        return "JPEG changes values where masks have edges: save the mask as PNG."
    if min(foreground) < 0:
        return "No class has a negative number: is it an image instead of a label?"
    if len(foreground) > 64:
        return "So many values look like an image: is the label's file the right one?"
    if len(foreground) < num_classes:
        targets = list(range(1, len(foreground) + 1))
        return (
            'Map them to classes, in the order of class_names, by a transform {"_target_": "MapLabelValued", "keys": '
            f'"label", "orig_labels": {foreground}, "target_labels": {targets}}} before CheckCased in the bundle\'s '
            "preprocessing."
        )
    return (
        f"It has {len(foreground)} values besides 0, but the bundle has {num_classes - 1} classes: add the others to "
        "class_names, or merge them or leave them out by MapLabelValued before CheckCased in the bundle's "
        "preprocessing."
    )
