"""Objects followed through drawn volumes, whose ends and shapes are known."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsaga.inferers.propagation import propagate


def ellipsoid(shape, centre, radii):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radii)) <= 1


@pytest.fixture(params=[1, 4], ids=["as it is", "four times as fine"])
def volume(request):
    """Intensities (H, W, D) of an organ of slices 5 to 34 beside one that is nearly as bright, and the organ."""
    fine = request.param
    shape = (90 * fine, 110 * fine, 40)
    organ = ellipsoid(shape, (45 * fine, 40 * fine, 19.5), (22 * fine, 16 * fine, 15))
    other = ellipsoid(shape, (45 * fine, 75 * fine, 19.5), (20 * fine, 17 * fine, 19)) & ~organ
    grey = gaussian_filter(0.2 + 0.4 * organ + 0.3 * other, (0.5 * fine, 0.5 * fine, 0))
    return grey + 0.02 * np.random.RandomState(0).randn(*shape), organ


def by_image(index, mask):
    """No network: what the image says stays."""
    return np.zeros_like(mask)


def followed(volume, known, first=0, last=39):
    grey, organ = volume
    masks = {index: organ[..., index] for index in known}
    found = np.zeros_like(organ)
    for index in known:
        found[..., index] = masks[index]
    for index, mask in propagate(masks, lambda index: grey[..., index], by_image, first, last):
        assert index not in known, "what is known is not asked for again"
        found[..., index] = mask
    return found


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def extent(mask):
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    return int(slices[0]), int(slices[-1])


@pytest.mark.parametrize("known", [[20], [12, 28], [8, 14, 20, 26, 32]])
def test_an_organ_is_followed_to_its_ends(volume, known):
    found = followed(volume, known)
    assert dice(found, volume[1]) > 0.95
    assert np.abs(np.subtract(extent(found), extent(volume[1]))).max() <= 1


def test_more_slices_make_it_no_worse(volume):
    scores = [dice(followed(volume, known), volume[1]) for known in ([20], [12, 28], [12, 20, 28], range(8, 33, 4))]
    assert all(b >= a - 0.015 for a, b in pairwise(scores)), scores
    assert scores[-1] == max(scores)


def test_shapes_that_lie_apart_have_a_middle():
    """A vessel that runs sideways: its cross-sections on the known slices do not touch."""
    places = {index: (slice(20, 28), slice(10 + 4 * index, 18 + 4 * index)) for index in range(11)}
    truth = np.zeros((48, 70, 11), dtype=bool)
    for index, place in places.items():
        truth[(*place, index)] = True
    found = followed((np.where(truth, 0.7, 0.2), truth), [0, 10], last=10)
    assert dice(found, truth) > 0.9


def test_the_networks_mask_is_taken_between_known_slices_where_it_means_the_same(volume):
    grey, organ = volume
    masks = {index: organ[..., index] for index in (12, 28)}
    alike = dict(propagate(masks, lambda index: grey[..., index], lambda index, mask: organ[..., index], 0, 39))
    assert all(np.array_equal(alike[index], organ[..., index]) for index in range(13, 28))
    # an answer about all that is bright
    other = dict(propagate(masks, lambda index: grey[..., index], lambda index, mask: grey[..., index] > 0.4, 0, 39))
    without = dict(propagate(masks, lambda index: grey[..., index], by_image, 0, 39))
    assert other.keys() == without.keys() and all(np.array_equal(other[index], without[index]) for index in without)


def test_nothing_beyond_the_slices_asked_for(volume):
    assert extent(followed(volume, [20], 15, 25)) == (15, 25)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_vessel_of_few_pixels_is_followed_between_its_ends(width):
    """On an image of which a random walk sees every third pixel only."""
    truth = np.zeros((512, 512, 9), dtype=bool)
    truth[301 : 301 + width, 199 : 199 + width] = True
    found = followed((np.where(truth, 0.8, 0.2), truth), [2, 6], last=8)
    assert (found & truth).any(axis=(0, 1)).tolist()[2:7] == [True] * 5, "between two known slices it is there"
    assert found.sum() < 9 * (width + 6) ** 2, "and is no more than it can be seen to be"


def test_one_pixel_alone_is_followed_no_further():
    mask = np.zeros((512, 512), dtype=bool)
    mask[100, 100] = True
    assert list(propagate({3: mask}, lambda index: np.zeros((512, 512)), by_image, 0, 9)) == []


def test_what_is_known_to_be_empty_is_no_object():
    assert list(propagate({3: np.zeros((20, 20), bool)}, lambda index: np.zeros((20, 20)), by_image, 0, 9)) == []
