"""Refuse images and labels that a slice network cannot learn from, naming the file and what is wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import Transform
from monai.utils import convert_to_dst_type

from medsaga.reading import Grid, ReadingError
from medsaga.reading.labels import UNLABELLED, class_numbers, unlabelled, whole_numbers

__all__ = ["CheckCased"]

logger = logging.getLogger(__name__)


def _name(image: torch.Tensor, key: str) -> str:
    return str(getattr(image, "meta", {}).get("filename_or_obj", key))


class CheckCased(Transform):
    """Check one case after ``OrientSlicesd``: channels, dimensions, finite values, label's shape, place and classes.

    For a bundle with one class, 0 and 255 in a label are read as 0 and 1, with a warning. Otherwise 255 means that a
    voxel is not labelled (:func:`~medsaga.reading.labels.unlabelled`), and is kept.

    Args:
        num_classes: number of classes including background; label values are 0 to ``num_classes - 1``, or 255.
        num_channels: that the image must have, one for each sequence. With 1 a 2-D image may also be RGB.
        image_key: key of the image, (C, H, W) or (C, H, W, D).
        label_key: key of the label, (1, H, W) or (1, H, W, D); not looked for where the data has no such key.

    Raises:
        ValueError: naming the file, when the image has other than 2 or 3 spatial dimensions, another number of
            channels, NaN or infinite values, or no contrast at all;
            when the label's shape differs from the image's, the label holds values outside the classes, or its header
            places it more than half a voxel away from the image.
    """

    def __init__(
        self, num_classes: int, num_channels: int = 1, image_key: str = "image", label_key: str = "label"
    ) -> None:
        self.num_classes = num_classes
        self.num_channels = num_channels
        self.image_key = image_key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        self._check_image(out[self.image_key])
        if self.label_key in out:
            out[self.label_key] = self._check_label(out[self.label_key], out[self.image_key])
        return out

    def _check_image(self, image: torch.Tensor) -> None:
        name = _name(image, self.image_key)
        channels, spatial = image.shape[0], tuple(image.shape[1:])
        if len(spatial) not in (2, 3):
            raise ValueError(f"{name}: it has {len(spatial)} axes {spatial}; expected a 2-D image or a volume.")
        self._check_channels(name, channels, len(spatial))
        # one pass over the voxels: NaN and infinities show in the extremes
        low, high = (float(extreme) for extreme in torch.aminmax(image))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~torch.isfinite(image)).sum())
            raise ValueError(f"{name}: {bad} of {image.numel()} values are NaN or infinite; clean the image first.")
        if low == high:
            raise ValueError(f"{name}: every value is {low}; the image is empty.")

    def _check_channels(self, name: str, channels: int, rank: int) -> None:
        wanted = self.num_channels
        if channels == wanted or (wanted == 1 and channels == 3 and rank == 2):
            return
        if wanted > 1:
            raise ReadingError(
                f"{name}: it has {channels} channel{'s' if channels > 1 else ''}, but this bundle takes {wanted} "
                "sequences. Give them in the order of its channel_names: a file of each, or one file with all as "
                "channels."
            )
        if rank == 3:
            raise ReadingError(
                f"{name}: it is a 4-D image with {channels} volumes, but this bundle takes 1 sequence. Save the time "
                "point or sequence to segment as a file of its own."
            )
        raise ReadingError(f"{name}: it has {channels} channels; expected 1 (grey) or 3 (RGB).")

    def _check_label(self, label: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        name = _name(label, self.label_key)
        if tuple(label.shape[1:]) != tuple(image.shape[1:]):
            raise ValueError(
                f"{name}: the label has shape {tuple(label.shape[1:])}, but its image {_name(image, self.image_key)} "
                f"has shape {tuple(image.shape[1:])}; they must be equal."
            )
        if label.shape[0] != 1:
            raise ValueError(f"{name}: the label has {label.shape[0]} channels; expected one class number per voxel.")
        values = whole_numbers(np.asarray(label.cpu()), name)
        unknown = unlabelled(values[0], self.num_classes)
        if unknown is not None:
            values = np.where(unknown, 0, values)
        numbers, notices = class_numbers(values, self.num_classes, name)
        if unknown is not None:
            numbers[0, unknown] = UNLABELLED
        for notice in notices:
            logger.warning(notice)
        offset = _offset(image, label)
        if offset > 0.5:
            raise ValueError(
                f"{name}: by its header it lies up to {offset:.1f} voxels away from its image "
                f"{_name(image, self.image_key)}; give both the same affine (origin, spacing and directions)."
            )
        return label if not notices and unknown is None else convert_to_dst_type(numbers, label)[0]


def _offset(image: torch.Tensor, label: torch.Tensor) -> float:
    """Largest distance between the corners of image and label in space, in units of the smallest voxel side."""
    if not (isinstance(image, MetaTensor) and isinstance(label, MetaTensor)):
        return 0.0
    first, second = (
        Grid(tuple(m.shape[1:]), to_affine_nd(3, np.asarray(m.affine)), placed=m.meta.get("placed", True))
        for m in (image, label)
    )
    return first.voxels_apart(second)
