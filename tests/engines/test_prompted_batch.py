"""Prompts drawn for training: inside and outside the object they are about."""

import pytest
import torch

from medsaga.engines import PreparePromptedBatch


@pytest.fixture
def batch():
    label = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    label[0, 0, 4:12, 6:20] = 1
    label[1, 0, 20:30, 2:9] = 2
    label[1, 0, 2:6, 20:30] = 1
    return {"image": torch.rand(3, 1, 32, 32), "label": label}  # the third shows no object


def draws(batch, number=60):
    torch.manual_seed(0)
    prepare = PreparePromptedBatch(1.0)
    return [prepare(batch)[3] for _ in range(number)]


def test_positive_clicks_lie_in_one_class_and_negative_ones_not(batch):
    seen = set()
    for prompts in draws(batch):
        if "points" not in prompts:
            continue
        points, labels = prompts["points"]
        for item in range(3):
            at = [int(batch["label"][item, 0, int(y), int(x)]) for x, y in points[item]]
            inside = {value for value, label in zip(at, labels[item]) if label == 1}
            outside = {value for value, label in zip(at, labels[item]) if label == 0}
            assert len(inside) == (item < 2), "clicks of one object; none where there is none"
            assert 0 not in inside and not inside & outside
            seen |= {(item, value) for value in inside}
    assert seen == {(0, 1), (1, 1), (1, 2)}, "each class of a slice has its turn"


def test_boxes_are_near_the_object(batch):
    for prompts in draws(batch):
        if "boxes" not in prompts:
            continue
        boxes = prompts["boxes"]
        assert boxes.shape == (3, 4)
        assert (boxes[:, :2] <= boxes[:, 2:] + 1).all() and boxes.min() >= -0.5 and boxes.max() <= 31.5
        expected = torch.tensor([5.5, 3.5, 19.5, 11.5])
        assert (boxes[0] - expected).abs().max() < 6
    centre = torch.stack([p["boxes"][0] for p in draws(batch, 400) if "boxes" in p]).mean(dim=0)
    torch.testing.assert_close(centre, torch.tensor([5.5, 3.5, 19.5, 11.5]), atol=0.3, rtol=0)


def test_clicks_boxes_and_both_occur(batch):
    kinds = {tuple(sorted(prompts)) for prompts in draws(batch)}
    assert kinds == {("points",), ("boxes",), ("boxes", "points")}


def test_the_share_of_batches_with_prompts(batch):
    torch.manual_seed(0)
    prompted = [bool(PreparePromptedBatch(0.3)(batch)[3]) for _ in range(1000)]
    assert abs(sum(prompted) / 1000 - 0.3) < 0.05
    assert not any(PreparePromptedBatch(0.0)(batch)[3] for _ in range(20))


def test_the_same_seed_draws_the_same(batch):
    first, second = draws(batch, 10), draws(batch, 10)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        if "boxes" in a:
            assert torch.equal(a["boxes"], b["boxes"])


def test_image_and_label_are_as_they_were(batch):
    image, label, args, _ = PreparePromptedBatch(1.0)(batch)
    assert torch.equal(image, batch["image"]) and torch.equal(label, batch["label"]) and args == ()


def test_a_probability_beyond_one():
    with pytest.raises(ValueError, match="from 0 to 1"):
        PreparePromptedBatch(1.5)
