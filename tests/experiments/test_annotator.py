import numpy as np
import pytest

from medsaga.experiments.annotator import boxes, clicks_to_correct, dice


def volume():
    """Class 1 on slices 0 and 1, class 2 on slice 1."""
    truth = np.zeros((8, 6, 3), dtype=np.uint8)
    truth[1:5, 2:4, 0] = 1
    truth[1:3, 2:4, 1] = 1
    truth[4:8, 0:5, 1] = 2
    return truth


def test_dice():
    a, b = np.zeros((2, 4, 4), dtype=bool)
    assert dice(a, b) == 1
    a[:2], b[1:] = True, True
    assert dice(a, b) == pytest.approx(2 * 4 / (8 + 12))


def test_boxes_enclose_each_class_on_each_slice():
    truth = volume()
    assert list(boxes(truth, 1)) == [[1, 4, 2, 3, 0, 0], [1, 2, 2, 3, 1, 1]]
    assert list(boxes(truth, 2)) == [[4, 7, 0, 4, 1, 1]]
    assert list(boxes(truth, 3)) == []


def test_a_box_for_each_class_and_slice_below_0_9():
    truth = volume()
    assert clicks_to_correct(truth, truth, 3) == 0
    assert clicks_to_correct(np.zeros_like(truth), truth, 3) == 2 * 3
    shown = truth.copy()
    shown[4, 0, 1] = 0  # class 2: 19 of 20 voxels, Dice 0.97
    assert clicks_to_correct(shown, truth, 3) == 0
    shown[4:6, 0:2, 1] = 1  # 16 of 20: 0.89, and the 4 make class 1 worse as well
    assert clicks_to_correct(shown, truth, 3) == 2 * 2
    shown = truth.copy()
    shown[0, 0, 2] = 2  # what is not there has to be removed
    assert clicks_to_correct(shown, truth, 3) == 2
