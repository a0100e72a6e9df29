"""Clicks for weights that have only learnt boxes, as MedSAM's and LiteMedSAM's have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.transforms.utils import generate_spatial_bounding_box
from scipy.ndimage import binary_dilation

__all__ = ["Box", "margin_by_boxes"]

Box = tuple[float, float, float, float]

_SHARES = (0.03, 0.055, 0.085, 0.13, 0.2, 0.28, 0.39)  # half the side of a square, of the image's longer side


def margin_by_boxes(
    decode: Callable[[Sequence[Box]], torch.Tensor],
    image: torch.Tensor,
    inside: Sequence[tuple[float, float]],
    outside: Sequence[tuple[float, float]],
    box: Box | None,
) -> torch.Tensor:
    """The mask of the box, among some around the clicks, that makes the most of an object.

    Boxes of several sizes around the positive clicks, or the given one, are decoded. The best mask holds the positive
    and none of the negative clicks, is stable when the threshold moves, and differs in intensity from what is around
    it. Where a negative click remains inside, boxes cut at that click are tried as well.

    A click alone gets nothing from such weights: their answer to a point is an empty mask.

    Args:
        decode: logits (n, H, W) of n boxes (row0, column0, row1, column1), in voxels, first and last within.
        image: (C, H, W).
        inside: (row, column) of positive clicks; at least one, or a box.
        outside: (row, column) of negative clicks.
        box: what the annotator has drawn.

    Returns:
        logits (H, W) of the best.

    Source:
        The stability of a mask is Segment Anything's (arXiv 2304.02643, section 5).
    """
    grey = image.float().mean(dim=0)
    boxes = [box] if box is not None else _around(inside, tuple(grey.shape))
    best, score = _best(decode(boxes), grey, inside, outside)
    for row, column in outside:
        if best[round(row), round(column)] <= 0:
            continue
        (r0, c0), (r1, c1) = generate_spatial_bounding_box((best > 0)[None])
        r1, c1 = r1 - 1, c1 - 1
        cuts = [(row + 1, c0, r1, c1), (r0, c0, row - 1, c1), (r0, column + 1, r1, c1), (r0, c0, r1, column - 1)]
        cuts = [cut for cut in cuts if cut[0] <= cut[2] and cut[1] <= cut[3]]
        if cuts:
            cut, cut_score = _best(decode(cuts), grey, inside, outside)
            if cut_score > score:
                best, score = cut, cut_score
    return best


def _around(inside: Sequence[tuple[float, float]], shape: tuple[int, int]) -> list[Box]:
    """Boxes around the clicks' own box."""
    rows, columns = zip(*inside)
    boxes = []
    for share in _SHARES:
        half = share * max(shape)
        row, column = (min(rows) + max(rows)) / 2, (min(columns) + max(columns)) / 2
        boxes.append(
            (
                max(0.0, min(row - half, min(rows))),
                max(0.0, min(column - half, min(columns))),
                min(shape[0] - 1.0, max(row + half, max(rows))),
                min(shape[1] - 1.0, max(column + half, max(columns))),
            )
        )
    return boxes


def _best(
    logits: torch.Tensor,
    grey: torch.Tensor,
    inside: Sequence[tuple[float, float]],
    outside: Sequence[tuple[float, float]],
) -> tuple[torch.Tensor, float]:
    scores = [_score(candidate, grey, inside, outside) for candidate in logits]
    index = max(range(len(scores)), key=lambda i: scores[i])
    return logits[index], scores[index]


def _score(
    logits: torch.Tensor,
    grey: torch.Tensor,
    inside: Sequence[tuple[float, float]],
    outside: Sequence[tuple[float, float]],
) -> float:
    mask = logits > 0
    if not mask.any():
        return -float(len(inside) + len(outside) + 1)
    missed = sum(not bool(mask[round(r), round(c)]) for r, c in inside)
    missed += sum(bool(mask[round(r), round(c)]) for r, c in outside)
    stability = float((logits > 1).sum() / (logits > -1).sum())
    width = max(1, round(0.01 * max(mask.shape)))
    ring = torch.from_numpy(binary_dilation(mask.numpy(), iterations=width + 1)) & ~mask
    if not ring.any():
        return -float(missed)
    around = grey[ring]
    contrast = (grey[mask].mean() - around.mean()).abs() / (grey[mask].std(False) + around.std(False) + 0.01)
    merit = stability * float(contrast)
    return merit / (1 + merit) - missed  # a click that is right outweighs all else
