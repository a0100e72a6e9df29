"""An annotator who knows the truth: what he draws, and how many clicks it takes him."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["GOOD_ENOUGH", "boxes", "clicks_to_correct", "dice"]

GOOD_ENOUGH = 0.9  # Dice of a class on a slice that he leaves as it is
_CLICKS_A_BOX = 2  # two corners


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def boxes(truth: np.ndarray, number: int) -> Iterator[list[int]]:
    """The box of a class on each slice that has it, as the app takes it.

    Args:
        truth: class numbers, (W, H, D) in the order of the file's axes.
        number: of the class.

    Yields:
        [i0, i1, j0, j1, k, k], first and last voxel by axis.
    """
    for k in np.flatnonzero((truth == number).any(axis=(0, 1))):
        i, j = np.nonzero(truth[:, :, k] == number)
        yield [int(v) for v in (i.min(), i.max(), j.min(), j.max(), k, k)]


def clicks_to_correct(shown: np.ndarray, truth: np.ndarray, classes: int) -> int:
    """Clicks for one box on each class and slice that is not good enough.

    Args:
        shown: class numbers that the annotator sees, (W, H, D).
        truth: the reference, of the same shape.
        classes: number of classes, background included.
    """
    wrong = 0
    for number in range(1, classes):
        for k in range(truth.shape[2]):
            wrong += dice(shown[:, :, k] == number, truth[:, :, k] == number) < GOOD_ENOUGH
    return _CLICKS_A_BOX * wrong
