"""Dice and HD95 between two label files, by class name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance

from lib.served_model import COMPUTING
from medsaga.reading import open_image
from medsaga.reading.labels import class_numbers, whole_numbers

__all__ = ["MEASURES", "compare_labels"]

MEASURES = ("dice", "hd95")

Scores = dict[str, dict[str, float | None]]


def compare_labels(
    proposal: str | Path,
    label: str | Path,
    classes: Mapping[str, int],
    measures: Sequence[str] = MEASURES,
    slices: Sequence[int] | None = None,
) -> Scores:
    """How well a proposal agrees with the label that an annotator made of it.

    Args:
        proposal: file of class numbers.
        label: file of class numbers, on the same grid.
        classes: class number by name, without the background.
        measures: ``dice``, ``hd95`` or both.
        slices: that are labelled, along the third axis; all unless given.

    Returns:
        for each measure its value by class name. ``hd95``: the larger of the two directed 95th percentiles of the
        distances between the surfaces, in mm (pixels where the file is a picture). None where a measure has no value:
        Dice of a class that both lack, HD95 of one that either lacks.

    Raises:
        ValueError: a file that is no label of these classes, or different shapes.
    """
    spacing = open_image(label).grid.spacing
    files = [_class_numbers(path, classes) for path in (proposal, label)]
    if files[0].shape != files[1].shape:
        raise ValueError(
            f"{proposal} has the shape {files[0].shape}, but {label} {files[1].shape}; they must be equal."
        )
    if slices is not None:
        others = np.setdiff1d(np.arange(files[0].shape[-1]), slices)
        for values in files:
            values[..., others] = 0
    scores: Scores = {measure: {} for measure in measures}
    for name, number in classes.items():
        masks = [values == number for values in files]
        present = [bool(mask.any()) for mask in masks]
        pair = [torch.from_numpy(mask)[None, None] for mask in _cropped(masks)]
        with COMPUTING:
            if "dice" in measures:
                dice = float(compute_dice(*pair, include_background=True, ignore_empty=False)) if any(present) else None
                scores["dice"][name] = dice
            if "hd95" in measures:
                scores["hd95"][name] = (
                    float(compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing))
                    if all(present)
                    else None
                )
    return scores


def _class_numbers(path: str | Path, classes: Mapping[str, int]) -> np.ndarray:
    values = whole_numbers(open_image(path, label=True).load(), path)
    return class_numbers(values, max(classes.values()) + 1, path)[0]


def _cropped(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The part of both masks that holds all of them: the time depends on the organ, not on the CT's size."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(a for a in range(masks[0].ndim) if a != axis)
        where = np.flatnonzero(masks[0].any(axis=others) | masks[1].any(axis=others))
        first, last = (where[0], where[-1] + 1) if len(where) else (0, 1)
        box.append(slice(first, last))
    return [mask[tuple(box)] for mask in masks]
