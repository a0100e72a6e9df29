"""Follow an object from the slices of a volume on which it is known to the other slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
from scipy.ndimage import center_of_mass, distance_transform_edt, gaussian_filter, shift

from .click_correction import blocks, enlarged, scale_of, walked

__all__ = ["propagate"]

_BETA = 600.0  # how strongly a difference in intensity separates two pixels
_BAND = (2.0, 0.25, 4.0)  # pixels that a border may move: base, added for each slice of distance, and most
_CORE = 2.0  # pixels from its border where an object is sure to be itself
_UNLIKE = 3.0  # standard deviations from which an intensity is not the object's
_LIKE = 0.5  # share of the core that must look like the object
_SMALLEST = 8  # pixels
_SHARE = 0.05  # of the largest known mask, below which the object has ended
_OVERLAP = 0.3  # of the smaller of two neighbouring masks
_ALIKE = 0.75  # Dice from which the network's mask counts as the same object


def propagate(
    known: Mapping[int, np.ndarray],
    slices: Callable[[int], np.ndarray],
    asked: Callable[[int, np.ndarray], np.ndarray],
    first: int,
    last: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Masks of the slices without one.

    Between two known masks, centre and shape (distance to the border) are interpolated, and the border is moved to
    nearby edges of the image (random walk, see :mod:`.click_correction`). The network's mask for the result is taken if
    it is similar. Beyond the known masks, the last mask is continued by the image alone until the object ends: its
    middle looks different, or it has become small, or it jumps. (The network is not used there, because it sees an
    object in each box, even where the object has ended.) The object's intensities are learnt from the known masks,
    which are not changed.

    Args:
        known: masks bool (H, W) by slice.
        slices: intensities (H, W) in [0, 1] of a slice.
        asked: the network's mask for a slice and a mask on it.
        first: the first slice to fill.
        last: the last one.

    Yields:
        index and mask of each slice that shows the object.

    Source:
        Raya and Udupa, Shape-based interpolation of multidimensional objects, IEEE TMI 9 (1990), doi
        10.1109/42.52980.
    """
    places = sorted(index for index, mask in known.items() if mask.any())
    if not places:
        return
    factor = scale_of(known[places[0]].shape)
    grey = {}

    def image(index: int) -> np.ndarray:
        if index not in grey:
            grey[index] = blocks(slices(index).astype(np.float32), factor)
        return grey[index]

    shares = {index: blocks(known[index].astype(np.float32), factor) for index in places}
    # a thin vessel may fill less than half of every block
    coarse = {index: share > min(0.5, float(share.max()) / 2) for index, share in shares.items()}
    for before, after in pairwise(places):
        ends = coarse[before], coarse[after]
        for index in range(before + 1, after):
            prior = _between(*ends, (index - before) / (after - before))
            if (prior > 0).any():
                mask = _moved(prior, image(index), min(index - before, after - index))
                yield index, _agreed(enlarged(mask, factor, known[before].shape), partial(asked, index))
    looks = np.concatenate([gaussian_filter(image(index), 0.7)[coarse[index]] for index in places])
    middle = float(np.median(looks))
    spread = 1.4826 * float(np.median(np.abs(looks - middle))) + 0.02  # of a normal distribution
    least = max(_SMALLEST, _SHARE * max(int(coarse[index].sum()) for index in places))
    for start, step, end in ((places[0], -1, first), (places[-1], 1, last)):
        mask = coarse[start]
        for index in range(start + step, end + step, step):
            border = _depth(mask)
            core = border >= min(_CORE, border.max() / 2)
            alike = np.abs(gaussian_filter(image(index), 0.7)[core] - middle) < _UNLIKE * spread
            if alike.mean() < _LIKE:
                break
            new = _moved(border, image(index), 1)
            if new.sum() < least or (new & mask).sum() < _OVERLAP * min(new.sum(), mask.sum()):
                break
            mask = new
            yield index, enlarged(mask, factor, known[start].shape)


def _between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Depth of the shape between two masks, both moved to one centre: shapes that lie apart have no middle."""
    centres = [np.array(center_of_mass(mask)) for mask in (one, other)]
    centre = (1 - share) * centres[0] + share * centres[1]
    here = [_depth(mask) for mask in (one, other)]
    moved = [shift(depth, centre - at, order=1, mode="nearest") for depth, at in zip(here, centres)]
    return np.maximum(*((1 - share) * a + share * b for a, b in (here, moved)))


def _agreed(mask: np.ndarray, asked: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The network's mask if it shows the same object, else the mask found without the network."""
    if not mask.any():
        return mask
    answer = asked(mask)
    return answer if 2 * (answer & mask).sum() >= _ALIKE * (answer.sum() + mask.sum()) else mask


def _depth(mask: np.ndarray) -> np.ndarray:
    """Pixels to the border, positive inside."""
    return distance_transform_edt(mask) - distance_transform_edt(~mask)


def _moved(depth: np.ndarray, grey: np.ndarray, distance: int) -> np.ndarray:
    """The mask of positive depths, with its border on edges of the image.

    Args:
        depth: pixels to the border, positive inside.
        grey: the slice.
        distance: to the nearest known one, in slices.
    """
    start, more, most = _BAND
    band = min(start + more * distance, most)
    seeds = np.where(depth > min(band, depth.max() - 0.01), 1, np.where(depth < -band, 2, 0))
    rows, columns = np.nonzero(seeds != 2)
    window = tuple(slice(max(0, at.min() - 2), at.max() + 3) for at in (rows, columns))
    mask = np.zeros(depth.shape, dtype=bool)
    mask[window] = walked(gaussian_filter(grey, 0.5)[window], seeds[window], _BETA)
    return mask
