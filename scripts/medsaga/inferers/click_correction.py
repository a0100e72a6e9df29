"""Correct a mask by a click: the image shows how far the wrong region extends around the click."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, zoom
from skimage.segmentation import random_walker

__all__ = ["Click", "Coarse", "correct", "merit", "without_islands", "wrong_by"]

Click = tuple[int, int, bool]  # row, column, and whether it is inside the object

_SIDE = 160  # pixels of an image's longer side for which no detail is left out
_SMALLEST = 2.0  # radius of the smallest region that is tried, in those pixels
_STEP = 1.4  # from one radius to the next
_LARGEST = 0.4  # radius of the largest, of the image's longer side
_CORE = 0.25  # of the radius; pixels nearer to the click always follow it
_BETA = 120.0  # how strongly a difference in intensity separates two pixels, see walked


def correct(
    mask: np.ndarray, grey: np.ndarray, click: Click, earlier: Sequence[Click] = (), within: np.ndarray | None = None
) -> np.ndarray:
    """The mask with one more click, which changes the mask around it as far as the image or an earlier click allows.

    A click where the mask is already right changes nothing. A click where it is wrong is taken as the middle of the
    wrong region, whose size is unknown. For several radii, a random walk on the image separates a region around the
    click from the pixels farther away. The region with the strongest edges at its border and with the click in its
    middle is taken. The mask's own border also ends a region, even where the image has no edge.

    Args:
        mask: bool (H, W).
        grey: intensities (H, W) in [0, 1].
        click: the new one.
        earlier: clicks that the mask follows already, and still does afterwards.
        within: bool (H, W), the pixels that may change; all unless given.

    Returns:
        bool (H, W), a new array.

    Source:
        Grady, Random walks for image segmentation, IEEE TPAMI 28 (2006), doi 10.1109/TPAMI.2006.233.
    """
    row, column, inside = click
    mask = mask.copy()
    if mask[row, column] == inside:
        return mask
    wrong = mask == (not inside)
    may = wrong if within is None else wrong & within
    reach = wrong_by(mask, click)
    best, most = None, 0.0
    coarse = Coarse(mask, grey)
    place = coarse.place(click)
    for region in _regions(coarse, click, earlier, reach / coarse.factor):
        found = merit(region, coarse.mask != inside, coarse.smooth, place)
        if found > most:
            best, most = region, found
    if best is not None:
        changed = may & enlarged(best, coarse.factor, mask.shape)
        changed[row, column] = True
        mask[without_islands(changed, [(row, column, True)])] = inside
    for r, c, side in (*earlier, click):
        mask[r, c] = side
    return mask


def wrong_by(mask: np.ndarray, click: Click) -> float:
    """Distance in pixels from a click to where the mask agrees with it; 0 if it agrees at the click."""
    row, column, inside = click
    wrong = mask == (not inside)
    if wrong.all():
        return float(max(mask.shape))
    # the wrong region ends at the mask's border, but not at the image's edge
    return float(distance_transform_edt(np.pad(wrong, 1, mode="edge"))[1:-1, 1:-1][row, column])


def merit(region: np.ndarray, others: np.ndarray, smooth: np.ndarray, place: tuple[int, int]) -> float:
    """How well a region fits a click: by the edges where it ends, and the click in its middle.

    Args:
        region: bool (H, W).
        others: bool (H, W), pixels from which an edge has to separate the region.
        smooth: intensities (H, W) in [0, 1].
        place: pixel of the click.
    """
    if not region[place]:
        return 0.0
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    centred = float(depth[place] / depth.max())
    return (_edges(region, others & ~region, smooth) + 0.01) * centred**8 * int(region.sum()) ** 0.1


def without_islands(mask: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """The connected parts of a mask that have a positive click."""
    parts, _ = label(mask)
    touched = {parts[r, c] for r, c, inside in clicks if inside} - {0}
    return np.isin(parts, list(touched))


class Coarse:
    """Mask and image with so few pixels that a random walk is quick.

    Args:
        mask: bool (H, W).
        grey: intensities (H, W) in [0, 1].
    """

    def __init__(self, mask: np.ndarray, grey: np.ndarray) -> None:
        self.factor = factor = scale_of(mask.shape)
        self.mask = blocks(mask.astype(np.float32), factor) > 0.5
        self.grey = blocks(grey.astype(np.float32), factor)
        self.smooth = gaussian_filter(self.grey, 0.5)

    def place(self, click: Click) -> tuple[int, int]:
        """The pixel of a click."""
        return click[0] // self.factor, click[1] // self.factor


def _regions(coarse: Coarse, click: Click, earlier: Sequence[Click], reach: float) -> Iterator[np.ndarray]:
    """The regions that could change, for one radius after another."""
    row, column = coarse.place(click)
    inside = click[2]
    wrong = coarse.mask == (not inside)
    wrong[row, column] = True
    shape = wrong.shape
    largest = min(2 * reach + 2, _LARGEST * max(shape))
    radii = [_SMALLEST * _STEP**n for n in range(32)]
    for radius in [*(r for r in radii if r < largest), largest]:
        low = np.maximum(np.floor([row - radius - 2, column - radius - 2]).astype(int), 0)
        high = np.minimum(np.ceil([row + radius + 3, column + radius + 3]).astype(int), shape)
        window = (slice(low[0], high[0]), slice(low[1], high[1]))
        r, c = row - low[0], column - low[1]
        here = wrong[window]
        squares = np.add.outer((np.arange(here.shape[0]) - r) ** 2, (np.arange(here.shape[1]) - c) ** 2)
        near = squares <= radius**2
        seeds = np.where(near, 0, 2)  # 1: follows the click, 2: stays as it was
        seeds[~here] = 1  # already right; wrong pixels may join it
        seeds[here & (squares <= max(0.5, min(_CORE * radius, reach / 2)) ** 2)] = 1
        for other in earlier:
            a, b = np.subtract(coarse.place(other), low)
            if 0 <= a < here.shape[0] and 0 <= b < here.shape[1] and (a, b) != (r, c):
                seeds[a, b] = 1 if other[2] == inside else 2
        region = np.zeros(shape, dtype=bool)
        region[window] = here & near & walked(coarse.grey[window], seeds, _BETA)
        yield without_islands(region, [(row, column, True)])


def walked(grey: np.ndarray, seeds: np.ndarray, beta: float) -> np.ndarray:
    """Where a random walker is more likely to meet a seed of 1 first than one of 2.

    Args:
        grey: intensities (H, W).
        seeds: (H, W), 0 where the walker starts.
        beta: how strongly a difference in intensity, in standard deviations, squared, separates two pixels.
    """
    if not (seeds == 0).any() or not (seeds == 2).any():
        return seeds != 2
    grey = grey.astype(np.float64)  # in float32 the walker's matrix may be singular
    spread = float(grey.std())
    if spread < 1e-6:  # the walker divides by it
        grey, spread = grey + np.indices(grey.shape).sum(axis=0) % 2 * 1e-3, 5e-4
    beta *= 10 * spread  # it divides by ten times the standard deviation
    return random_walker(grey, seeds, beta=beta, mode="bf", return_full_prob=True)[0] > 0.5


def _edges(region: np.ndarray, stays: np.ndarray, smooth: np.ndarray) -> float:
    """Mean step in intensity from a region to the neighbours that it leaves as they were."""
    steps = []
    for a, b, values in ((region, stays, smooth), (region.T, stays.T, smooth.T)):
        difference = np.abs(np.diff(values, axis=0))
        steps += [difference[a[1:] & b[:-1]], difference[a[:-1] & b[1:]]]
    joined = np.concatenate(steps)
    return float(joined.mean()) if len(joined) else 0.15  # no neighbours stay: a hole, or all that was wrong


def scale_of(shape: tuple[int, int]) -> int:
    """Number of pixels along a side that become one, so that a random walk is quick."""
    return max(1, round(max(shape) / _SIDE))


def blocks(values: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks; the last ones are filled up with the edge's values."""
    if factor == 1:
        return values
    values = np.pad(values, [(0, -n % factor) for n in values.shape], mode="edge")
    return values.reshape(values.shape[0] // factor, factor, -1, factor).mean(axis=(1, 3))


def enlarged(region: np.ndarray, factor: int, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of :func:`blocks`, for a mask."""
    if factor == 1:
        return region
    fine = zoom(region.astype(np.float32), factor, order=1, mode="nearest", grid_mode=True)
    return fine[: shape[0], : shape[1]] > 0.5
