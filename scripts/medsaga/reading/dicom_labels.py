"""Labels that are DICOM objects: segmentations (SEG) and structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pydicom

from medsaga.dicom_seg import read_seg, segment_names

from .dicom import is_dicom
from .dicom_files import read_header
from .image import Grid, ImageFile, ReadingError, reason
from .layers import Layers, class_of, needed
from .names import ARRAYS, PICTURES, VOLUMES, suffix_of
from .structures import region_mask, region_names

__all__ = ["dicom_label_kind", "label_names", "open_dicom_label"]

_KINDS = {"1.2.840.10008.5.1.4.1.1.66.4": "SEG", "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT"}  # by SOP class


def dicom_label_kind(path: str | Path) -> str:
    """``SEG`` or ``RTSTRUCT``; empty for everything else, and for files that cannot be read."""
    path = Path(path)
    if suffix_of(path) in (*VOLUMES, *PICTURES, *ARRAYS) or not path.is_file() or not is_dicom(path):
        return ""
    try:
        return _KINDS.get(read_header(path).sop_class, "")
    except ReadingError:
        return ""


def label_names(path: str | Path) -> list[str]:
    """Names of the segments of a SEG, or of the regions of an RTSTRUCT, in the file's order.

    Raises:
        ReadingError: naming the file, when it cannot be read or is neither a SEG nor an RTSTRUCT.
    """
    path = Path(path)
    kind = dicom_label_kind(path)
    if not kind:
        raise ReadingError(f"{path}: it is neither a DICOM segmentation nor a structure set.")
    return _names(_read(path, pixels=False), kind)


def _names(found: pydicom.Dataset, kind: str) -> list[str]:
    return list(segment_names(found).values()) if kind == "SEG" else list(region_names(found).values())


def open_dicom_label(path: Path, kind: str, class_names: Sequence[str] | None, image: Grid | None) -> ImageFile:
    """A SEG or RTSTRUCT on the grid of its image, see :func:`~medsaga.reading.label_forms.open_label`.

    Args:
        path: file.
        kind: ``SEG`` or ``RTSTRUCT``.
        class_names: of all classes, background first; segments or regions of other names are left out.
        image: grid of the image that it segments.

    Raises:
        ReadingError: naming the file and what is wrong with it.
    """
    names = needed(class_names, path, f"a DICOM {kind}")
    if image is None:
        raise ReadingError(f"{path}: a DICOM {kind} can be read only with its image; give the case's image, too.")
    found = _names(_read(path, pixels=False), kind)
    notices = ()
    if not any(class_of(name, names) for name in found):
        notices = (
            f"{path}: its {'segments' if kind == 'SEG' else 'regions'} are {', '.join(found) or 'none'}, but none of "
            f"the classes {', '.join(names[1:])}; all its voxels become background.",
        )
    return ImageFile(replace(image, channels=1), partial(_load, path, kind, names, image), notices)


def _load(path: Path, kind: str, class_names: Sequence[str], image: Grid) -> np.ndarray:
    found = _read(path)
    present = {class_of(name, class_names) for name in _names(found, kind)}
    layers = Layers(image.shape, class_names, path)
    mask_of: Callable[[str], np.ndarray] = (
        (lambda name: read_seg(found, image, {name: 1}) != 0)
        if kind == "SEG"
        else (lambda name: region_mask(found, name, image, path))
    )
    for number, name in enumerate(class_names):
        if number and number in present:
            try:
                layers.add(number, mask_of(name))
            except ReadingError:
                raise
            except Exception as err:  # pydicom raises many kinds of exceptions for a damaged file
                raise ReadingError(f"{path}: this DICOM {kind} cannot be read: {reason(err)}.") from err
    return layers.finished()


def _read(path: Path, pixels: bool = True) -> pydicom.Dataset:
    try:
        found = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        for element in found.iterall():  # pydicom converts an element when it is looked up
            assert element is not None
    except Exception as err:
        raise ReadingError(f"{path}: its DICOM content cannot be read: {reason(err)}; is the file damaged?") from err
    return found
