"""Values of DICOM images: conversion to the modality's units, padding, and whether high values are bright."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut

from .dicom_files import DicomFile, numbers
from .dicom_frames import read_frames
from .dicom_geometry import Slice
from .image import ReadingError, reason

__all__ = ["channels_of", "check_values", "read_values"]

_OVERLAY_BIT = 0x60000102  # means that there is an overlay, which may lie in the bits above the pixel's

logger = logging.getLogger(__name__)


def channels_of(file: DicomFile) -> int:
    """1 for grey images, 3 for colour images, including those with a palette."""
    return 3 if file.stored.samples == 3 or file.stored.kind == "PALETTE COLOR" else 1


def check_values(where: Path, slices: Sequence[Slice]) -> tuple[str, ...]:
    """Refuse, from headers alone, slices whose values do not go together.

    Returns:
        notices: of padding that :func:`read_values` will replace.

    Raises:
        ReadingError: a volume in colour; a rescale that only some slices have; a table that cannot be used.
    """
    first = slices[0].file
    colour = [s for s in slices if channels_of(s.file) != 1]
    if colour and (len(slices) > 1 or slices[0].position is not None):
        raise ReadingError(
            f"{colour[0].file.path}: this slice is in colour ({colour[0].file.stored.kind}). Volumes must have grey "
            f"values; colour can be read only in a picture without a position in the patient."
        )
    for n, keyword in enumerate(("RescaleSlope", "RescaleIntercept")):
        lacking = [s for s in slices if s.rescale[n] is None]
        if lacking and len(lacking) < len(slices):
            raise ReadingError(
                f"{where}: {len(lacking)} of {len(slices)} slices (for example {lacking[0].file.path.name}) have no "
                f"{keyword}, but the others do; their values cannot be compared."
            )
    notices = []
    if first.stored.kind == "MONOCHROME1" and slices[0].position is not None:
        notices.append(f"{where}: its header says to show it inverted (MONOCHROME1); its values are not changed.")
    padding = [numbers(s.file, "PixelPaddingValue", 1) for s in slices]
    found = [int(value[0]) for value in padding if value is not None]
    if found and not colour:
        notices.append(f"{where}: padding ({found[0]}, PixelPaddingValue) gets the lowest value of the other voxels.")
    return tuple(notices)


def read_values(where: Path, slices: Sequence[Slice], shape: tuple[int, ...]) -> np.ndarray:
    """Decode slices.

    Stored values become slope × stored + intercept, each slice by its own (or by its modality look-up table). Padding
    gets the lowest value of the other pixels. A projection stored as MONOCHROME1 is inverted within the range of its
    stored bits, so that dense is bright; values of slices in the patient (HU) are not inverted.

    Returns:
        of ``shape``, or (W, H, 3), uint8, for colour: int16 or int32 where all slopes are 1 and all intercepts whole,
        else float32.

    Raises:
        ReadingError: truncated or damaged data.
    """
    first = slices[0].file
    if channels_of(first) == 3:
        return np.ascontiguousarray(_colours(first).transpose(1, 0, 2))
    values = np.empty((*slices[0].size, len(slices)), _type(slices), order="F")
    padding: dict[int, np.ndarray] = {}  # bits: a mask of the whole volume would take a byte for each voxel
    lowest = np.inf
    declared = any(s.file.header.get("PixelPaddingValue") is not None for s in slices)
    places = {(s.file, s.frame): k for k, s in enumerate(slices)}
    for file in dict.fromkeys(s.file for s in slices):
        for frame, stored in enumerate(read_frames(file)):
            k = places[file, frame]
            padded = _padding(file, stored)
            rows = values[:, :, k].T
            rows[:] = _rescaled(slices[k], _stored_bits(file, stored, padded))
            if declared:
                kept = rows if padded is None else rows[~padded]
                lowest = min(lowest, kept.min() if kept.size else np.inf)
            if padded is not None and padded.any():
                padding[k] = np.packbits(padded)
    count = 0
    for k, bits in padding.items():
        if np.isfinite(lowest):
            mask = np.unpackbits(bits, count=values[:, :, k].size).astype(bool).reshape(slices[0].size[::-1])
            values[:, :, k].T[mask] = lowest
            count += int(mask.sum())
    if count:
        logger.info("%s: %d of %d voxels are padding and were given the value %g", where, count, values.size, lowest)
    return values.reshape(shape, order="F")


def _type(slices: Sequence[Slice]) -> type[np.generic]:
    """The smallest of int16, int32 and float32 that holds the values exactly."""
    low = high = 0.0
    for s in slices:
        slope, intercept = (1.0 if s.rescale[0] is None else s.rescale[0], s.rescale[1] or 0.0)
        if slope != 1 or intercept != round(intercept) or s.file.header.get("ModalityLUTSequence"):
            return np.float32
        bottom, top = s.file.stored.range
        low, high = min(low, bottom + intercept), max(high, top + intercept)
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    return np.float32


def _padding(file: DicomFile, stored: np.ndarray) -> np.ndarray | None:
    """Which pixels are padding, None where the header declares none.

    The header may give the value signed where pixels are unsigned (-2000 for 63536), so bit patterns are compared.
    """
    ends = [numbers(file, keyword, 1) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    given = [int(value[0]) & (2 ** (8 * stored.itemsize) - 1) for value in ends if value is not None]
    if ends[0] is None:
        return None
    low, high = np.sort(np.array(given, f"u{stored.itemsize}").view(stored.dtype.newbyteorder("=")))[[0, -1]]
    return (stored >= low) & (stored <= high)


def _stored_bits(file: DicomFile, stored: np.ndarray, padded: np.ndarray | None) -> np.ndarray:
    """Stored values without the bits that do not belong to them, and with their sign."""
    size, bits, high = 8 * stored.itemsize, file.stored.bits, file.stored.high
    if bits == size:
        return stored
    values = (stored << (size - 1 - high)) >> (size - bits)
    if high == bits - 1 and _OVERLAY_BIT not in file.header:
        # above the stored bits only zeros or a sign are allowed; else the header is wrong, and cutting would change
        # values
        odd = (values != stored) & (stored.view(f"u{stored.itemsize}") >> bits != 0)
        if padded is not None:
            odd &= ~padded
        if odd.any():
            raise ReadingError(
                f"{file.path}: {int(odd.sum())} pixels, such as {int(stored[odd][0])}, do not fit the {bits} bits of "
                f"BitsStored; the header is wrong, or the file is damaged."
            )
    return values


def _rescaled(s: Slice, stored: np.ndarray) -> np.ndarray:
    slope, intercept = (1.0 if s.rescale[0] is None else s.rescale[0], s.rescale[1] or 0.0)
    ends = np.array(s.file.stored.range)
    if s.file.header.get("ModalityLUTSequence"):
        try:
            values = apply_modality_lut(stored, s.file.header).astype(np.float64)
            table = np.asarray(s.file.header.ModalityLUTSequence[0].LUTData)
            ends = np.array([table.min(), table.max()], float)
        except Exception as e:
            raise ReadingError(f"{s.file.path}: its ModalityLUTSequence cannot be used: {reason(e)}.") from e
    elif slope == 1 and intercept == round(intercept):
        values, ends = np.add(stored, int(intercept), dtype=np.int32, casting="unsafe"), ends + int(intercept)
    else:
        values, ends = stored * slope + intercept, ends * slope + intercept
    if s.file.stored.kind == "MONOCHROME1" and s.position is None:
        values = ends.sum() - values
    return values


def _colours(file: DicomFile) -> np.ndarray:
    """(rows, columns, 3), RGB, uint8."""
    (pixels,) = read_frames(file)
    if file.stored.kind == "PALETTE COLOR":
        try:
            pixels = apply_color_lut(pixels, file.header)
        except Exception as e:
            raise ReadingError(f"{file.path}: its palette cannot be used: {reason(e)}.") from e
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
