"""What a click changes: on drawn objects all of what is wrong, on anything nothing else."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from medsaga.inferers.click_correction import correct, without_islands, wrong_by


def disc(shape, row, column, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def scene(side, seed=0):
    """Two touching organs and one apart, in noise, and their masks."""
    shape = (side, side)
    at = [disc(shape, *(np.array(v) * side)) for v in ((0.35, 0.35, 0.16), (0.35, 0.62, 0.1), (0.75, 0.7, 0.12))]
    grey = 0.2 + 0.5 * at[0] + 0.25 * (at[1] & ~at[0]) + 0.4 * at[2]
    noise = 0.02 * np.random.RandomState(seed).randn(*shape)
    return np.clip(gaussian_filter(grey, side / 200) + noise, 0, 1), at


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("side", [80, 160, 512])
def test_a_missed_organ_is_added_whole(side):
    grey, (first, _, third) = scene(side)
    click = (round(0.75 * side), round(0.7 * side), True)
    assert dice(correct(first, grey, click, [(round(0.35 * side),) * 2 + (True,)]), first | third) > 0.97


@pytest.mark.parametrize("side", [80, 160, 512])
def test_a_neighbour_that_is_no_part_is_taken_away_whole(side):
    grey, (first, second, _) = scene(side)
    click = (round(0.35 * side), round(0.64 * side), False)
    assert dice(correct(first | second, grey, click, [(round(0.35 * side),) * 2 + (True,)]), first) > 0.95


def test_a_small_hole_stays_small():
    """The annotator clicks on a hole of 3 pixels in the middle of a large organ: only the hole goes."""
    grey, (first, _, _) = scene(160)
    hole = disc(first.shape, 56, 56, 3)
    click = (56, 56, False)
    assert dice(correct(first, np.where(hole, 0.2, grey), click, [(40, 56, True)]), first & ~hole) > 0.99


@pytest.mark.parametrize("side", [40, 64, 400])
@pytest.mark.parametrize("seed", range(10))
def test_a_click_changes_one_place_in_one_way(side, seed):
    random = np.random.RandomState(seed)
    grey = gaussian_filter(random.rand(side, side + 7), side / 30)
    grey = (grey - grey.min()) / np.ptp(grey)
    mask = gaussian_filter(random.randn(side, side + 7), side / 12) > 0
    clicks = []
    for _ in range(8):
        row, column = int(random.randint(side)), int(random.randint(side + 7))
        click = (row, column, bool(random.rand() < 0.5))
        clicks = [c for c in clicks if c[:2] != click[:2]]
        new = correct(mask, grey, click, clicks)
        again = correct(mask, grey, click, clicks)
        np.testing.assert_array_equal(new, again)
        changed = new != mask
        if wrong_by(mask, click) == 0:
            assert not changed.any()
        assert (new[changed] == click[2]).all(), "a positive click only adds, a negative one only takes away"
        assert label(changed)[1] <= 1 + len(clicks), "but for pixels of earlier clicks it is one place"
        assert changed.sum() == 0 or changed[row, column]
        clicks.append(click)
        assert all(new[r, c] == inside for r, c, inside in clicks)
        mask = new


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_image_without_any_edge(value):
    mask = disc((60, 50), 30, 25, 12)
    grey = np.full((60, 50), value)
    for click in ((5, 5, True), (30, 25, False)):
        new = correct(mask, grey, click, [(22, 25, True)])
        assert new[click[:2]] == click[2] and new[22, 25]
        assert (new != mask).sum() < mask.size / 4


def test_nothing_beyond_where_it_may_change():
    grey, (first, _, third) = scene(160)
    within = np.zeros_like(third)
    within[100:120] = True
    new = correct(first, grey, (119, 112, True), [], within)
    assert (new != first)[100:120].any() and not (new != first)[~within].any()


def test_how_wrong_a_click_is():
    mask = disc((60, 60), 30, 30, 10)
    assert wrong_by(mask, (30, 30, True)) == 0
    assert wrong_by(mask, (30, 30, False)) == pytest.approx(101**0.5)
    assert wrong_by(mask, (30, 0, True)) == pytest.approx(20), "the image's edge ends nothing"
    assert wrong_by(np.zeros_like(mask), (30, 0, True)) == 60


def test_islands_without_a_click_go():
    mask = disc((60, 60), 20, 20, 5) | disc((60, 60), 45, 45, 5) | disc((60, 60), 20, 45, 5)
    kept = without_islands(mask, [(20, 20, True), (45, 45, True), (50, 10, True), (20, 45, False)])
    np.testing.assert_array_equal(kept, disc((60, 60), 20, 20, 5) | disc((60, 60), 45, 45, 5))
