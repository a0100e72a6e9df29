"""Clicks turned into boxes, with a decoder whose masks are known: the bright part of the box."""

import pytest
import torch

from medsaga.inferers.click_boxes import margin_by_boxes


@pytest.fixture
def image():
    """Two bright objects of 10 × 10 and 16 × 6 pixels in the dark, (1, 64, 64)."""
    image = torch.zeros(1, 64, 64)
    image[0, 10:20, 10:20] = 1
    image[0, 30:46, 40:46] = 1
    return image


def bright(image):
    """What a box holds of the bright; what is dark in it, or outside, is not the object."""

    def decode(boxes):
        masks = torch.full((len(boxes), 64, 64), -5.0)
        for mask, (r0, c0, r1, c1) in zip(masks, boxes):
            part = slice(max(0, round(r0)), round(r1) + 1), slice(max(0, round(c0)), round(c1) + 1)
            mask[part] = image[0][part] * 10 - 5
        return masks

    return decode


def test_one_click_finds_the_whole_object(image):
    mask = margin_by_boxes(bright(image), image, inside=[(14, 15)], outside=[], box=None) > 0
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[10:20, 10:20] = True
    assert torch.equal(mask, expected)


def test_a_box_is_taken_as_it_is(image):
    mask = margin_by_boxes(bright(image), image, inside=[], outside=[], box=(8, 8, 14, 22)) > 0
    assert mask.sum() == 5 * 10


def test_two_clicks_reach_both_objects(image):
    mask = margin_by_boxes(bright(image), image, inside=[(14, 15), (40, 43)], outside=[], box=None) > 0
    assert mask[14, 15] and mask[40, 43]


def test_a_negative_click_takes_an_object_away(image):
    both = margin_by_boxes(bright(image), image, inside=[], outside=[], box=(5, 5, 50, 50)) > 0
    one = margin_by_boxes(bright(image), image, inside=[(14, 15)], outside=[(38, 42)], box=(5, 5, 50, 50)) > 0
    assert both[14, 15] and both[38, 42]
    assert one[14, 15] and not one[38, 42]


def test_a_negative_click_outside_the_mask_changes_nothing(image):
    without = margin_by_boxes(bright(image), image, inside=[(14, 15)], outside=[], box=None)
    with_one = margin_by_boxes(bright(image), image, inside=[(14, 15)], outside=[(60, 60)], box=None)
    assert torch.equal(without, with_one)
