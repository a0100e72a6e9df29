"""Slices of an image or volume for a square network, a batch at a time, and where the image is in them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor

from medsaga.transforms import fit_square

__all__ = ["MAX_SLICES", "evenly_spaced", "image_area", "slice_batches"]

# Neighbouring slices say nearly the same. This many, evenly spaced, limit the time that a scan takes.
MAX_SLICES = 16


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Positions of ``wanted`` of ``count`` slices, the middles of equal parts; all where there are no more."""
    wanted = min(count, wanted)
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


def slice_batches(
    image: torch.Tensor, image_size: int, batch_size: int, max_slices: int = MAX_SLICES
) -> Iterator[torch.Tensor]:
    """Cut the slices that are used into the network's square inputs.

    Args:
        image: preprocessed image or volume, intensities in [0, 1].
        image_size: side S of the network's input, in pixels.
        batch_size: slices a batch.
        max_slices: of a volume; of a longer one this many slices are used, evenly spaced.

    Yields:
        batches of slices, plain float tensors; memory beyond ``image`` is that of one batch.

    Shape:
        - image: (C, H, W) or (C, H, W, D)
        - each batch: (b, C, S, S), b at most ``batch_size``

    Raises:
        ValueError: another number of axes.
    """
    if image.ndim not in (3, 4):
        raise ValueError(f"image has shape {tuple(image.shape)}: it must be (C, H, W) or (C, H, W, D)")
    slices = convert_to_tensor(image, track_meta=False)
    slices = slices.permute(3, 0, 1, 2) if image.ndim == 4 else slices[None]
    chosen = evenly_spaced(len(slices), max_slices)
    for start in range(0, len(chosen), batch_size):
        yield fit_square(slices[chosen[start : start + batch_size]].float(), image_size)


def image_area(shape: tuple[int, int], image_size: int, grid: int) -> torch.Tensor:
    """Where a map of the square input shows the image and not the padding.

    Args:
        shape: (rows, columns) of the slice.
        image_size: side S of the network's input, in pixels.
        grid: side m of the map.

    Returns:
        (m, m), true where at least half a cell is image.
    """
    inside = fit_square(torch.ones(1, 1, *shape), image_size)
    return F.adaptive_avg_pool2d(inside, grid)[0, 0] >= 0.5
