"""Slices of any shape to the square input of a SAM network, and logits back to the slice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

__all__ = ["FitSquared", "fit_square", "undo_fit_square"]


def _fitted_shape(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Shape (rows, columns) whose longer side is ``size``, with the proportions of ``shape``."""
    longest = max(shape)
    return max(1, round(shape[0] * size / longest)), max(1, round(shape[1] * size / longest))


def _resize(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation of (B, C, H, W) to (B, C, *shape), antialiased where it shrinks."""
    if shape[1] == 1 < shape[0]:
        # torch 2.14 on a CPU mixes up the rows of a result one column wide; a result of one row is right
        return _resize(images.mT, (1, shape[0])).mT
    return F.interpolate(images, size=shape, mode="bilinear", align_corners=False, antialias=True)


def fit_square(images: torch.Tensor, size: int, label: bool = False) -> torch.Tensor:
    """Scale the longer side to ``size`` and pad with zeros at the bottom and right, as SAM and LiteMedSAM do.

    Args:
        images: (B, C, H, W).
        size: side of the square, in pixels.
        label: nearest neighbour instead of bilinear interpolation (antialiased where it shrinks).

    Returns:
        (B, C, size, size), floating point unless ``label``.
    """
    shape = _fitted_shape(tuple(images.shape[-2:]), size)
    if shape != tuple(images.shape[-2:]):
        if label:
            images = F.interpolate(images.float(), size=shape, mode="nearest-exact").to(images.dtype)
        else:
            images = _resize(images.float(), shape)
    return F.pad(images, (0, size - shape[1], 0, size - shape[0]))


def undo_fit_square(logits: torch.Tensor, size: int, shape: tuple[int, int]) -> torch.Tensor:
    """Take the logits of a square input back to the slice it was made from: enlarge, crop the padding, resize.

    Args:
        logits: (B, k, h, h), the network's output for the (B, C, size, size) that :func:`fit_square` made.
        size: side of the network's input, in pixels.
        shape: (rows, columns) of the original slice.

    Returns:
        (B, k, rows, columns).
    """
    logits = logits.float()
    if logits.shape[-1] != size:
        logits = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    rows, columns = _fitted_shape(shape, size)
    logits = logits[..., :rows, :columns]
    if (rows, columns) != shape:
        logits = _resize(logits, shape)
    return logits


class FitSquared(MapTransform):
    """Dictionary transform of :func:`fit_square` for single slices (C, H, W).

    Args:
        keys: image and label keys.
        size: side of the network's input, in pixels.
        label_keys: those of ``keys`` that hold class numbers.
    """

    def __init__(self, keys: KeysCollection, size: int, label_keys: KeysCollection = ("label",)) -> None:
        super().__init__(keys)
        self.size = size
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            image = convert_to_tensor(out[key], track_meta=False)
            out[key] = fit_square(image[None], self.size, label=key in self.label_keys)[0]
        return out
