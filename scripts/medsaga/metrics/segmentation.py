"""Dice and HD95 of a label map, by class, per volume and per slice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance

__all__ = ["segmentation_metrics"]


def _dice_hd95(pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and HD95 of (B, k-1, ...) masks, each (B, k-1); NaN where a measure has no value."""
    dice = compute_dice(pred, label, include_background=True, ignore_empty=False)
    present = [m.flatten(2).any(-1).bool() for m in (pred, label)]  # torch answers uint8 for uint8
    dice[~present[0] & ~present[1]] = float("nan")
    hd95 = torch.full_like(dice, float("nan"), dtype=torch.float64)
    both = (present[0] & present[1]).nonzero().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty masks, which are taken care of here
        for b, c in both:
            hd95[b, c] = compute_hausdorff_distance(
                pred[b : b + 1, c : c + 1],
                label[b : b + 1, c : c + 1],
                include_background=True,
                percentile=95,
                spacing=list(spacing),
            )
    return dice, hd95


def segmentation_metrics(
    pred: torch.Tensor, label: torch.Tensor, num_classes: int, spacing: Sequence[float]
) -> list[dict[str, float]]:
    """Dice and HD95 of one case for each class besides background.

    Per volume: over the whole case. Per slice: the mean over the slices (of the last axis) that have the class in the
    reference or in the prediction. HD95 is the larger of the two directed 95th percentiles of surface distances; the
    class's HD95 has no value (NaN) where it is missing from one of the two, Dice has none where both lack it.

    Args:
        pred: class numbers (1, H, W) or (1, H, W, D).
        label: the reference, of the same shape.
        num_classes: including background.
        spacing: size of a voxel in mm, in the order of the spatial axes.

    Returns:
        for classes 1 to ``num_classes - 1``: {"class", "dice", "hd95", "slice_dice", "slice_hd95"}; HD95 in mm.

    Raises:
        ValueError: different shapes.
    """
    if pred.shape != label.shape:
        raise ValueError(
            f"The prediction has shape {tuple(pred.shape)}, but the label has shape {tuple(label.shape)}; they must be "
            "the same."
        )
    spacing = [float(s) for s in spacing][: pred.ndim - 1]
    # a class at a time, so that memory does not grow with their number
    return [{"class": c, **_of_class(pred == c, label == c, spacing)} for c in range(1, num_classes)]


def _of_class(pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> dict[str, float]:
    masks = [m[None].to(torch.uint8) for m in (pred, label)]
    dice, hd95 = slice_dice, slice_hd95 = _dice_hd95(*masks, spacing)
    if pred.ndim == 4:
        slices = [m[0].movedim(-1, 0) for m in masks]  # (D, 1, H, W)
        slice_dice, slice_hd95 = (m.nanmean(dim=0) for m in _dice_hd95(*slices, spacing[:2]))
    return {
        "dice": float(dice),
        "hd95": float(hd95),
        "slice_dice": float(slice_dice),
        "slice_hd95": float(slice_hd95),
    }
