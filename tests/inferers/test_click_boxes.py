"""Clicks turned into boxes, with a decoder whose masks are known: the bright part of the box."""

import numpy as np
import pytest
import torch

from medsaga.inferers.click_boxes import mask_by_boxes


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


def found(image, row, column):
    return mask_by_boxes(bright(image), image[0].numpy(), (row, column, True))


def test_one_click_finds_the_whole_object(image):
    np.testing.assert_array_equal(found(image, 14, 15), (image[0] > 0).numpy() & (np.arange(64) < 25)[:, None])


def test_each_click_finds_its_own_object(image):
    np.testing.assert_array_equal(found(image, 38, 43), (image[0] > 0).numpy() & (np.arange(64) > 25)[:, None])


def test_where_there_is_nothing_the_mask_is_empty(image):
    assert not found(image, 55, 10).any()
