from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medsaga.handlers import OverlayPictures

NAMES = ["background", "anterior", "posterior"]


def label_map(shape):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:8, 2:8] = 1
    label[8:12, 2:8] = 2
    return label


def colourful(path):
    """Pixels of the picture that are not grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (pixels.max(axis=-1) - pixels.min(axis=-1) > 30).sum()


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((16, 20), 1),
        ((16, 20), 3),
        ((16, 20), 2),
        ((16, 20, 9), 1),
        ((16, 20, 9), 3),
        ((16, 20, 9), 4),
        ((40, 20, 2), 1),
    ],
    ids=str,
)
def test_picture_of_a_case(tmp_path, case, evaluator, shape, channels):
    label = label_map(shape)
    cases = [case("a.nii.gz", label, label, channels=channels)]
    evaluator(cases, OverlayPictures(tmp_path / "pictures", NAMES, num_slices=3)).run()
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "a.png"
    width, height = Image.open(path).size
    assert 500 < width < 2000
    assert 200 < height < 3000
    assert colourful(path) > 1000


def test_rows_are_slices_that_show_a_class(tmp_path, case, evaluator):
    heights = []
    for i, slices in enumerate(([4], [2, 4, 6], range(9))):
        label = np.zeros((16, 16, 9), dtype=np.uint8)
        label[..., list(slices)] = label_map((16, 16))[..., None]
        evaluator([case(f"{i}.nii.gz", label, label)], OverlayPictures(tmp_path, NAMES, num_slices=4)).run()
        heights.append(Image.open(tmp_path / f"{i}.png").size[1])
    one, three, four = heights
    assert three - one == pytest.approx(2 * 300, rel=0.1)  # and a narrow gap
    assert four - three == pytest.approx(300, rel=0.1)


def test_prediction_and_reference_are_drawn_apart(tmp_path, case, evaluator):
    """Image, reference, prediction from left to right: an empty prediction leaves its panel without colour."""
    label = label_map((16, 16))
    evaluator([case("a.png", np.zeros_like(label), label)], OverlayPictures(tmp_path, NAMES)).run()
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    picture = picture[: int(0.85 * len(picture))]  # without the legend
    colour = (picture.max(axis=-1) - picture.min(axis=-1) > 30).sum(axis=0)
    image, reference, prediction = (part.sum() for part in np.array_split(colour, 3))
    assert reference > 1000
    assert image == prediction == 0


def test_volume_without_a_class_is_drawn_nevertheless(tmp_path, case, evaluator):
    nothing = np.zeros((16, 16, 5), dtype=np.uint8)
    data = case("a.nii.gz", nothing, nothing)
    evaluator([data], OverlayPictures(tmp_path, NAMES, num_slices=2)).run()
    assert Image.open(tmp_path / "a.png").size[0] > 500


def test_only_the_first_cases_are_drawn(tmp_path, case, evaluator):
    label = label_map((16, 16))
    cases = [case(f"{i}.png", label, label) for i in range(4)]
    evaluator(cases, OverlayPictures(tmp_path, NAMES, num_cases=2)).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]
