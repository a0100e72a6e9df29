"""The first click for weights that were only trained on boxes, as MedSAM's and LiteMedSAM's were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.transforms.utils import generate_spatial_bounding_box

from .click_correction import Click, Coarse, merit, without_islands

__all__ = ["Box", "box_around", "mask_by_boxes"]

Box = tuple[float, float, float, float]

_SHARES = (0.03, 0.055, 0.085, 0.13, 0.2, 0.28, 0.39)  # half the side of a square, of the image's longer side


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row and column of a mask (H, W), not empty: r0, c0, r1, c1."""
    (r0, c0), (r1, c1) = generate_spatial_bounding_box(mask[None])
    return r0, c0, r1 - 1, c1 - 1


def mask_by_boxes(decode: Callable[[Sequence[Box]], torch.Tensor], grey: np.ndarray, click: Click) -> np.ndarray:
    """The best mask from squares of several sizes around a click.

    Each square is decoded as a box. The best mask has strong edges at its border, has the click in its middle, and is
    stable when the threshold moves. Such weights cannot use the click itself: their answer to a point is an empty mask.

    Args:
        decode: logits (n, H, W) of n boxes (row0, column0, row1, column1), in voxels, first and last within.
        grey: intensities (H, W) in [0, 1].
        click: inside the object.

    Returns:
        bool (H, W): the part with the click, empty where no square shows an object there.

    Source:
        The stability of a mask is Segment Anything's (arXiv 2304.02643, section 5).
    """
    best, most = np.zeros(grey.shape, dtype=bool), 0.0
    for logits in decode(_around(click, grey.shape)).numpy():
        mask = without_islands(logits > 0, [click])
        coarse = Coarse(mask, grey)
        stability = (logits > 1).sum() / max(1, (logits > -1).sum())
        found = stability * merit(coarse.mask, ~coarse.mask, coarse.smooth, coarse.place(click))
        if found > most:
            best, most = mask, found
    return best


def _around(click: Click, shape: tuple[int, int]) -> list[Box]:
    row, column, _ = click
    halves = [share * max(shape) for share in _SHARES]
    last_row, last_column = shape[0] - 1.0, shape[1] - 1.0
    return [
        (max(0.0, row - h), max(0.0, column - h), min(last_row, row + h), min(last_column, column + h)) for h in halves
    ]
