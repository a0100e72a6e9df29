"""Prompts on slices: where they go, which class they mean, and how far an object is followed."""

import math

import pytest
import torch

from medsaga.inferers import EmbeddingCache, PromptedSlices, SlicePrompt
from medsaga.inferers.prompted_slices import _with_clicks
from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square, undo_fit_square


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SamSegmenter("vit_test", image_size=64, num_classes=3).eval()


@pytest.fixture
def volume():
    return torch.rand(1, 24, 32, 6, generator=torch.Generator().manual_seed(1))


def slices(volume, network, head="classes"):
    return PromptedSlices(volume, network, EmbeddingCache(), "case", head)


def test_a_slice_is_encoded_once(volume, network, monkeypatch):
    encoded = []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda image: encoded.append(1) or encode(image))
    prompted = slices(volume, network)
    for column in (3, 8, 20):
        prompted.segment({2: SlicePrompt(inside=((5, column),))})
    assert len(encoded) == 1
    prompted.segment({3: SlicePrompt(inside=((5, 5),))})
    assert len(encoded) == 2


@pytest.mark.parametrize("head", ["classes", "sam"])
def test_the_mask_is_the_networks_own_for_the_same_prompt(volume, network, head):
    """Against a plain forward pass; 24 × 32 pixels go to 64 × 64, so that a pixel becomes two."""
    prompt = SlicePrompt(inside=((5.0, 9.0),), outside=((20.0, 30.0),), box=(2.0, 3.0, 12.0, 17.0))
    found = slices(volume, network, head).segment({4: prompt}, target=2)
    points = torch.tensor([[[18.5, 10.5], [60.5, 40.5]]]), torch.tensor([[1.0, 0.0]])
    boxes = torch.tensor([[5.5, 3.5, 35.5, 25.5]])
    with torch.no_grad():
        logits = network(fit_square(volume[None, ..., 4], 64), points, boxes)
    logits = undo_fit_square(logits, 64, (24, 32))[0]
    expected = logits[0] > 0 if head == "sam" else logits.argmax(dim=0) == 2
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    # near a click that the network contradicts the click is right, see below
    far = ((rows - 5) ** 2 + (columns - 9) ** 2 > 64) & ((rows - 20) ** 2 + (columns - 30) ** 2 > 64)
    assert torch.equal(found[..., 4][far], expected.to(torch.uint8)[far]) and far.sum() > 300
    assert not found[..., :4].any() and not found[..., 5:].any()


@pytest.mark.parametrize("target", [1, 2])
def test_a_click_is_right_where_it_was_set(volume, network, target):
    prompted = slices(volume, network)
    for row, column in ((3, 4), (12, 20), (21, 28)):
        inside = {0: SlicePrompt(inside=((row, column),), box=(0, 0, 23, 31))}
        outside = {0: SlicePrompt(outside=((row, column),), box=(0, 0, 23, 31))}
        assert prompted.segment(inside, target=target)[row, column, 0] == 1
        assert prompted.segment(outside, target=target)[row, column, 0] == 0


def test_a_correction_fades_with_distance():
    margin = torch.full((50, 50), -3.0)
    corrected = _with_clicks(margin, SlicePrompt(inside=((25, 25),)))
    assert corrected[25, 25] == pytest.approx(4.0)  # -3 + (1 + 2 · 3)
    assert corrected[25, 27] == pytest.approx(-3 + 7 * math.exp(-0.5))  # a standard deviation of 0.04 · 50 = 2 away
    torch.testing.assert_close(corrected[25, 40], torch.tensor(-3.0))
    assert torch.equal(_with_clicks(margin, SlicePrompt(outside=((25, 25),))), margin), "it was right already"


def test_without_a_name_the_class_is_the_one_seen_at_the_clicks(volume, network):
    prompt = SlicePrompt(inside=((5, 9),))
    with torch.no_grad():
        points = torch.tensor([[[18.5, 10.5]]]), torch.ones(1, 1)
        logits = undo_fit_square(network(fit_square(volume[None, ..., 0], 64), points), 64, (24, 32))[0]
    seen = int(logits[1:, 5, 9].argmax()) + 1
    expected = slices(volume, network).segment({0: prompt}, target=seen)
    assert torch.equal(slices(volume, network).segment({0: prompt}), expected)


def test_a_2d_image_has_a_2d_mask(network):
    image = torch.rand(3, 30, 20)
    assert slices(image, network).segment({0: SlicePrompt(box=(1, 1, 8, 9))}, target=1).shape == (30, 20)


class _Cylinder(PromptedSlices):
    """An object on slices 2 to 7 that moves a pixel a slice; the network's part is played by the truth."""

    def _margin(self, index, prompt, target):
        margin = torch.full(self.shape, -5.0)
        if 2 <= index <= 7:
            margin[5 + index : 11 + index, 8:16] = 5.0
        return margin


@pytest.mark.parametrize("start", [2, 4, 7])
def test_an_object_is_followed_to_its_ends_and_no_further(network, start):
    volume = torch.zeros(1, 24, 32, 12)
    prompt = {start: SlicePrompt(box=(5 + start, 8, 10 + start, 15))}
    alone = _Cylinder(volume, network, EmbeddingCache(), "case").segment(prompt)
    followed = _Cylinder(volume, network, EmbeddingCache(), "case").segment(prompt, propagate=True)
    assert alone.any(dim=0).any(dim=0).nonzero().flatten().tolist() == [start]
    assert followed.any(dim=0).any(dim=0).nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("prompted", [(0, 5), (0, 4), (1, 2)])
def test_between_two_prompted_slices_each_slice_follows_the_nearer(network, prompted):
    followed = []

    class Spy(PromptedSlices):
        def _margin(self, index, prompt, target):
            followed.append(index)
            return torch.full(self.shape, 5.0)

    prompts = {i: SlicePrompt(box=(0, 0, 23, 31)) for i in prompted}
    Spy(torch.zeros(1, 24, 32, 6), network, EmbeddingCache(), "case").segment(prompts, propagate=True)
    assert sorted(followed) == list(range(6)), "every slice once, whichever side it is followed from"


def test_an_unstable_mask_is_not_followed(network):
    class Unsure(PromptedSlices):
        def _margin(self, index, prompt, target):
            return torch.full(self.shape, 5.0 if index == 2 else 0.5)

    mask = Unsure(torch.zeros(1, 24, 32, 6), network, EmbeddingCache(), "case").segment(
        {2: SlicePrompt(box=(0, 0, 23, 31))}, propagate=True
    )
    assert mask.any(dim=0).any(dim=0).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt"),
        ({0: SlicePrompt(outside=((1, 1),))}, "no prompt"),
        ({6: SlicePrompt(inside=((1, 1),))}, "outside the image of 24 × 32 × 6"),
        ({0: SlicePrompt(inside=((24, 1),))}, "outside the image"),
        ({0: SlicePrompt(box=(0, 0, 5, 40))}, "outside the image"),
    ],
)
def test_prompts_that_cannot_be_used(volume, network, prompts, message):
    with pytest.raises(ValueError, match=message):
        slices(volume, network).segment(prompts)


def test_unknown_head(volume, network):
    with pytest.raises(ValueError, match="head='x' is unknown"):
        slices(volume, network, "x")
