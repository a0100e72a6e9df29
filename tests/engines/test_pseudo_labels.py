"""What an average of the weights says of slices without labels, and when it is learnt from."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medsaga.engines import PreparePseudoLabels
from medsaga.engines.pseudo_labels import pseudo_labels
from medsaga.handlers import MovingAverage


class Bright(nn.Module):
    """Class 1 where the image is bright, the surer the further from 0.5."""

    def forward(self, image):
        return torch.cat([-20 * (image - 0.5), 20 * (image - 0.5)], dim=1)


def batch(size=8, labelled=2, unlabelled=3):
    torch.manual_seed(0)
    return {
        "image": torch.rand(labelled, 1, size, size),
        "label": torch.randint(2, (labelled, 1, size, size), dtype=torch.uint8),
        "unlabelled": torch.rand(unlabelled, 1, size, size),
        "weak": torch.rand(unlabelled, 1, size, size),
    }


def labelled_alone(data, *_, **__):
    return data["image"], data["label"], (), {}


def prepare(step=100, rampup=100, labelled=labelled_alone, **options):
    average = SimpleNamespace(network=Bright(), momentum=0.01, iteration=step)
    return PreparePseudoLabels(labelled, average, rampup, **{"unlabelled": 1.0, **options})


def test_sure_pixels_get_their_class_and_others_255():
    probabilities = torch.tensor([[0.97, 0.94, 0.6, 0.2, 0.05], [0.03, 0.06, 0.4, 0.8, 0.95]])
    logits = probabilities.log().view(1, 2, 1, 5)
    # class 0: 0.97, 0.94, 0.6, of which the median is above the threshold; class 1: 0.8, 0.95, whose median is 0.8
    assert pseudo_labels(logits, 0.9).flatten().tolist() == [0, 0, 255, 1, 1]
    assert pseudo_labels(logits, 0.5).flatten().tolist() == [0, 0, 0, 1, 1]
    # a class that is nowhere sure is learnt from where it is surest
    assert pseudo_labels(
        torch.tensor([0.6, 0.7, 0.8]).logit().view(1, 1, 1, 3).repeat(1, 2, 1, 1)
        * torch.tensor([0.0, 1.0]).view(1, 2, 1, 1),
        0.95,
    ).flatten().tolist() == [255, 1, 1]


def test_the_teachers_labels_of_the_weak_image_go_with_the_strong_one():
    data = batch()
    image, label, args, options = prepare(cutmix=0.0)(data)
    assert torch.equal(image, torch.cat([data["image"], data["unlabelled"]])) and not args and not options
    assert torch.equal(label[:2], data["label"]) and label.dtype == torch.uint8
    pseudo = label[2:]
    known = pseudo != 255
    assert torch.equal(pseudo[known], (data["weak"] > 0.5).to(torch.uint8)[known]) and 0 < known.float().mean() < 1
    assert (abs(data["weak"] - 0.5)[~known].max() <= abs(data["weak"] - 0.5)[known].max()).all()


def test_cutmix_takes_a_rectangle_with_its_labels_from_the_next():
    data = batch(size=32)
    plain = prepare(cutmix=0.0)(data)
    torch.manual_seed(1)
    image, label, _, _ = prepare(cutmix=1.0)(data)
    assert torch.equal(image[:2], data["image"]) and torch.equal(label[:2], data["label"])
    changed = (image[2:] != data["unlabelled"]).any(dim=1)
    rows, columns = changed[0].any(1).nonzero().flatten(), changed[0].any(0).nonzero().flatten()
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert 0.09 < inside.float().mean() < 0.51
    for new, old in ((image[2:], data["unlabelled"]), (label[2:], plain[1][2:])):
        assert torch.equal(new[..., inside], old.roll(1, 0)[..., inside])
        assert torch.equal(new[..., ~inside], old[..., ~inside])


@pytest.mark.parametrize(("share", "taken"), [(1.0, 3), (0.5, 2), (0.0, 1)])
def test_a_share_of_them_is_taken(share, taken):
    data = batch()
    image, label, _, _ = prepare(cutmix=0.0, unlabelled=share)(data)
    assert len(image) == len(label) == 2 + taken and torch.equal(image[2:], data["unlabelled"][:taken])


@pytest.mark.parametrize(("step", "least", "most"), [(0, 0, 0.05), (50, 0.2, 0.4), (100, 1, 1), (1000, 1, 1)])
def test_at_first_few_batches_have_them(step, least, most):
    ready = prepare(step)
    torch.manual_seed(0)
    share = sum(len(ready({k: v.clone() for k, v in DATA.items()})[0]) > 2 for _ in range(300)) / 300
    assert least <= share <= most


DATA = batch()


def test_a_batch_with_prompts_has_none():
    def prompted(data, *_, **__):
        return data["image"], data["label"], (), {"classes": torch.ones(2)}

    image, label, _, options = prepare(labelled=prompted)(batch())
    assert len(image) == len(label) == 2 and "classes" in options


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"cutmix": -0.1}, {"unlabelled": 2.0}])
def test_shares_are_from_0_to_1(options):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        prepare(**options)


def test_without_an_average_there_is_no_teacher():
    with pytest.raises(ValueError, match="ema_momentum"):
        PreparePseudoLabels(labelled_alone, MovingAverage(nn.Linear(1, 1)))
