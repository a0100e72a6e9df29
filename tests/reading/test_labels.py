from __future__ import annotations

import numpy as np
import pytest

from medsaga.reading import ReadingError
from medsaga.reading.labels import class_numbers, unlabelled, whole_numbers


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 1], [2, 1]], dtype=np.uint8),
        np.array([[0, 1], [2, 1]], dtype=">i2"),
        np.array([[0, 1], [2, 1]], dtype=np.float64),
        np.array([[1e-7, 1 - 1e-7], [2 + 9e-4, 0.9995]], dtype=np.float32),
        np.array([[-0.0, 1], [2, 1]], dtype=np.float32),
    ],
)
def test_integer_like_values_are_class_numbers(values):
    whole = whole_numbers(values, "a.nii.gz")
    assert whole.dtype.kind in "iu"
    numbers, notices = class_numbers(whole, 3, "a.nii.gz")
    assert numbers.dtype == np.uint8
    assert numbers.tolist() == [[0, 1], [2, 1]]
    assert not notices


def test_one_bit_masks_are_class_numbers():
    assert whole_numbers(np.array([[True, False]]), "a.png").tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "such as 0.5 are no class numbers.*nearest neighbour"),
        (1.002, "such as 1.002"),
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (1e12, "values go from 0 to 1e"),
        (1j, "type complex128"),
    ],
)
def test_what_is_no_class_number_is_refused_by_file(value, message):
    with pytest.raises(ReadingError, match=rf"^a\.nii\.gz: .*{message}"):
        whole_numbers(np.array([[0, value]]), "a.nii.gz")


@pytest.mark.parametrize("white", [255, 65535])
def test_white_is_taken_for_one_where_there_is_one_class(white):
    numbers, notices = class_numbers(np.array([[0, white]], dtype=np.uint16), 2, "a.png")
    assert numbers.tolist() == [[0, 1]]
    assert notices == (f"a.png: values 0 and {white} are read as 0 and 1.",)


@pytest.mark.parametrize(
    ("values", "num_classes", "name", "message"),
    [
        ([0, 255], 3, "a.png", r"label values 255 .*3 classes.*MapLabelValued.*\[255\].*\[1\]"),
        ([0, 150, 200, 250], 4, "a.png", r'"orig_labels": \[150, 200, 250\], "target_labels": \[1, 2, 3\]'),
        ([0, 1, 2, 3], 3, "a.nii", "3 values besides 0, but the bundle has 2 classes"),
        ([0, 1, 255], 2, "a.png", "2 values besides 0, but the bundle has 1 classes"),
        ([-1, 0], 2, "a.nii", "negative"),
        ([0, 3, 250, 255], 2, "mask.JPG", "JPEG changes values.*PNG"),
        (list(range(200)), 2, "a.nii", "look like an image"),
    ],
)
def test_values_outside_the_classes_are_refused_with_the_remedy(values, num_classes, name, message):
    with pytest.raises(ReadingError, match=message):
        class_numbers(np.array([values]), num_classes, name)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([[[0, 1], [255, 0]]], [[[True, True], [False, True]]]),
        (np.stack([np.zeros((3, 3)), np.full((3, 3), 255)]), np.stack([np.ones((3, 3)), np.zeros((3, 3))])),
    ],
)
def test_what_is_not_labelled_is_found(values, known):
    values = np.array(values, dtype=np.uint8)
    assert np.array_equal(~unlabelled(values, 2), np.array(known, dtype=bool))


@pytest.mark.parametrize(
    "values",
    [
        np.eye(4, dtype=np.uint8) * 255,  # masks of one class, 2-D and 3-D
        np.pad(np.full((2, 2, 2), 255), 1),
        np.full((3, 3, 3), 255),
        np.array([[0, 1], [2, 0]]),
        np.array([[255, 0], [255, 0]]),  # of a picture no slice
    ],
)
def test_a_mask_is_labelled_everywhere(values):
    assert unlabelled(values, 2) is None


def test_where_255_may_be_a_class_it_is_one():
    assert unlabelled(np.array([[1, 255]]), 256) is None


@pytest.mark.parametrize("values", [[0, 85, 170, 255], [0, 128, 255], [0, 1, 5, 255], [-1, 1, 255]])
def test_beside_values_that_are_no_classes_255_is_none_either(values):
    assert unlabelled(np.array([values]), 4) is None
    with pytest.raises(ReadingError, match=r"label values .*255.* are outside the 4 classes"):
        class_numbers(np.array([values]), 4, "a.png")
