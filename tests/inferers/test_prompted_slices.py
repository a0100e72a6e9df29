"""Prompts on slices: where they go, which class they mean, and how far an object is followed."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from medsaga.inferers import EmbeddingCache, PromptedSlices, SlicePrompt
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


def test_a_volume_of_several_sequences_is_segmented_by_all():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", image_size=64, num_classes=3, in_channels=2).eval()
    volume = torch.rand(2, 24, 32, 6, generator=torch.Generator().manual_seed(1))
    prompts = {4: SlicePrompt(box=(2.0, 3.0, 20.0, 27.0)), 2: SlicePrompt(inside=((8.0, 9.0),))}
    found = slices(volume, network).segment(prompts, target=2, propagate=True)
    assert found.shape == (24, 32, 6)
    expected = own_mask(volume, network, "classes", boxes=torch.tensor([[5.5, 3.5, 55.5, 41.5]]))
    box = torch.zeros(24, 32, dtype=torch.bool)
    box[2:21, 3:28] = True
    assert torch.equal(found[..., 4], (expected & box).to(torch.uint8)) and found[..., 4].any()
    changed = slices(volume * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), network).segment(prompts, target=2)
    assert not torch.equal(changed[..., 4], found[..., 4])


def own_logits(volume, network, **prompt):
    """By a plain forward pass; 24 × 32 pixels go to 64 × 64, so that a pixel becomes two."""
    with torch.no_grad():
        logits = network(fit_square(volume[None, ..., 4], 64), **prompt)
    return undo_fit_square(logits, 64, (24, 32))[0]


def own_mask(volume, network, head, **prompt):
    logits = own_logits(volume, network, **prompt)
    return logits[0] > 0 if head == "sam" else logits.argmax(dim=0) == 2


@pytest.mark.parametrize("head", ["classes", "sam"])
def test_a_boxs_mask_is_the_networks_own_within_the_box(volume, network, head):
    found = slices(volume, network, head).segment({4: SlicePrompt(box=(2.0, 3.0, 12.0, 17.0))}, target=2)
    expected = own_mask(volume, network, head, boxes=torch.tensor([[5.5, 3.5, 35.5, 25.5]]))
    box = torch.zeros(24, 32, dtype=torch.bool)
    box[2:13, 3:18] = True
    assert torch.equal(found[..., 4], (expected & box).to(torch.uint8)) and (expected & box).any()
    assert not found[..., :4].any() and not found[..., 5:].any()


@pytest.mark.parametrize("head", ["classes", "sam"])
def test_a_first_clicks_mask_is_the_part_of_the_networks_own_that_it_is_on(volume, network, head):
    """Of a trained network the one without a prompt where it has the click, else the mean of both."""
    masks = []
    for row, column in ((5, 9), (12, 20), (20, 4), (3, 28), (18, 15)):
        points = torch.tensor([[[2 * column + 0.5, 2 * row + 0.5]]]), torch.ones(1, 1)
        if head == "sam":
            expected = own_mask(volume, network, head, points=points)
        else:
            both = [own_logits(volume, network, **prompt).softmax(dim=0) for prompt in ({}, {"points": points})]
            found = both[0].argmax(dim=0) == 2
            expected = found if found[row, column] else torch.stack(both).mean(dim=0).argmax(dim=0) == 2
        if not expected[row, column]:
            continue  # the image decides, see test_click_correction.py
        found = slices(volume, network, head).segment({4: SlicePrompt(inside=((row, column),))}, target=2)[..., 4]
        parts, _ = label(expected.numpy())
        assert torch.equal(found.bool(), torch.from_numpy(parts == parts[row, column]))
        masks.append(found)
    assert masks, "the network agrees with one click at least"


# --- the contract of prompts (docs/prompts.md) ----------------------------------------------------------------------


def drawn(random, count, box):
    """Prompts as they are set one after another: the lists of each moment."""
    inside, outside, moments = [], [], []
    corners = None
    if box:
        r0, r1 = sorted(random.choice(24, 2, replace=False).tolist())
        c0, c1 = sorted(random.choice(32, 2, replace=False).tolist())
        corners = (float(r0), float(c0), float(r1), float(c1))
        moments.append(SlicePrompt(box=corners))
    for place in random.permutation(24 * 32)[:count]:
        kind = inside if not (inside or box) or random.rand() < 0.5 else outside
        kind.append((float(place // 32), float(place % 32)))
        moments.append(SlicePrompt(tuple(inside), tuple(outside), corners))
    return moments


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("head", ["classes", "sam", "sam_boxes"])
@pytest.mark.parametrize("seed", range(4))
def test_random_prompts_keep_the_contract(volume, network, head, box, seed):
    random = np.random.RandomState(seed)
    prompted = slices(volume, network, head)
    seen = []
    for prompt in drawn(random, 8, box):
        mask = prompted.segment({1: prompt})[..., 1].bool()
        assert all(mask[int(r), int(c)] for r, c in prompt.inside)
        assert not any(mask[int(r), int(c)] for r, c in prompt.outside)
        if box:
            r0, c0, r1, c1 = (int(v) for v in prompt.box)
            beyond = mask.clone()
            beyond[r0 : r1 + 1, c0 : c1 + 1] = False
            outside_box = [p for p in prompt.inside if not (r0 <= p[0] <= r1 and c0 <= p[1] <= c1)]
            assert outside_box or not beyond.any(), "only who clicks outside of his box leaves it"
        else:
            parts, count = label(mask.numpy())
            assert {int(parts[int(r), int(c)]) for r, c in prompt.inside} == set(range(1, count + 1)), "no island"
        seen.append((prompt, mask))
    for prompt, mask in random.permutation(np.array(seen, dtype=object)):  # taken back, set again, after a restart
        for prompts in (prompted, slices(volume, network, head)):
            assert torch.equal(prompts.segment({1: prompt})[..., 1].bool(), mask)


@pytest.mark.parametrize("head", ["classes", "sam", "sam_boxes"])
def test_prompts_taken_back_at_a_random_moment_leave_the_mask_before(network, head):
    """40 sequences on images with objects; after a restart the mask of the moment is the same bit for bit."""
    random = np.random.RandomState(5)
    for number in range(40):
        image = torch.full((1, 24, 32), 0.2)
        for _ in range(3):
            row, column = random.randint(0, 16), random.randint(0, 24)
            image[0, row : row + 8, column : column + 8] = random.rand()
        moments = drawn(random, 6, box=number % 2 == 1)
        prompted = slices(image, network, head)
        masks = [prompted.segment({0: prompt}, target=1) for prompt in moments]
        back = random.randint(len(moments))
        assert torch.equal(prompted.segment({0: moments[back]}, target=1), masks[back])
        assert torch.equal(slices(image, network, head).segment({0: moments[back]}, target=1), masks[back])


# --- protected voxels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("head", ["classes", "sam", "sam_boxes"])
@pytest.mark.parametrize("seed", range(3))
def test_random_prompts_leave_protected_voxels(volume, network, head, box, seed):
    """In whatever order neighbours come and go: the same prompts beside the same neighbour give the same mask."""
    random = np.random.RandomState(seed)
    prompted = slices(volume, network, head)
    neighbours = [None, *(random.rand(24, 32, 6) < share for share in (0.0, 0.2, 0.5))]
    seen = []
    for prompt in drawn(random, 8, box):
        for number, neighbour in enumerate(neighbours):
            if neighbour is not None and any(neighbour[int(r), int(c), 1] for r, c in prompt.inside):
                with pytest.raises(ValueError, match="positive point .* is on a protected voxel"):
                    prompted.segment({1: prompt}, 1, protected=neighbour)
                continue
            found = prompted.segment({1: prompt}, 1, protected=neighbour)[..., 1].numpy()
            mask = found == 1
            assert all(mask[int(r), int(c)] for r, c in prompt.inside)
            assert not any(mask[int(r), int(c)] for r, c in prompt.outside)
            assert neighbour is None or not (mask & neighbour[..., 1]).any()
            assert not (found == 2).any() or neighbour[..., 1][found == 2].all(), "what it was kept out of"
            if not box:
                parts, count = label(mask)
                assert {int(parts[int(r), int(c)]) for r, c in prompt.inside} == set(range(1, count + 1)), "no island"
            seen.append((prompt, number, mask))
    masks = {(prompt, number): mask for prompt, number, mask in seen}
    for prompt, number, mask in [seen[place] for place in random.permutation(len(seen))]:
        for prompts in (prompted, slices(volume, network, head)):
            again = prompts.segment({1: prompt}, 1, protected=neighbours[number])[..., 1].numpy() == 1
            np.testing.assert_array_equal(again, mask)
        if number == 1:
            np.testing.assert_array_equal(mask, masks[prompt, 0], "a neighbour without a voxel is none")


@pytest.mark.parametrize("box", [None, (18.0, 8.0, 42.0, 50.0)])
def test_a_correction_does_not_reach_through_a_neighbour(network, box):
    """A bright bar with a wall through it; the network sees nothing, so all comes from the clicks."""
    image = torch.zeros(1, 60, 60)
    image[0, 22:38, 10:48] = 0.8

    class Nothing(PromptedSlices):
        def _margin(self, index, prompt, target):
            return torch.full(self.shape, -5.0)

    prompted = Nothing(image, network, EmbeddingCache(), "case", "sam")
    wall = np.zeros((60, 60), bool)
    wall[:, 30:32] = True
    prompt = {0: SlicePrompt(inside=((30.0, 26.0),), box=box)}
    free, kept = (prompted.segment(prompt, protected=protected) for protected in (None, wall))
    assert free[:, 32:].any(), "else there is nothing to see"
    assert kept[30, 26] and not (kept[:, 30:] == 1).any()
    np.testing.assert_array_equal(kept == 2, free.numpy().astype(bool) & wall)


@pytest.mark.parametrize("head", ["classes", "sam", "sam_boxes"])
def test_a_click_that_is_right_already_changes_nothing(volume, network, head):
    prompted = slices(volume, network, head)
    first = prompted.segment({0: SlicePrompt(inside=((12, 16),))})[..., 0]
    right = [(int(r), int(c)) for r, c in first.nonzero()[:: max(1, int(first.sum()) // 5)]]
    again = prompted.segment({0: SlicePrompt(inside=((12, 16), *[p for p in right if p != (12, 16)]))})[..., 0]
    assert torch.equal(first, again)


def test_a_correction_is_seen_on_the_mask_before(network):
    """Two bright squares side by side, of which the network's box holds both: the negative click takes one away, the
    next positive one brings back a corner, and what is far from both stays."""
    image = torch.zeros(1, 60, 60)
    image[0, 20:40, 10:28], image[0, 20:40, 30:48] = 0.8, 0.5

    class Both(PromptedSlices):
        def _margin(self, index, prompt, target):
            return torch.where(image[0] > 0.3, 5.0, -5.0)

    prompted = Both(image, network, EmbeddingCache(), "case", "sam")
    box = (18.0, 8.0, 42.0, 50.0)
    both = prompted.segment({0: SlicePrompt(box=box)}).bool()
    one = prompted.segment({0: SlicePrompt(outside=((30.0, 39.0),), box=box)}).bool()
    assert both.sum() == 2 * 20 * 18 and one.sum() == 20 * 18 and one[20:40, 10:28].all()


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


class _Bright(PromptedSlices):
    """The network's part is played by the image: what is bright in the box."""

    def _margin(self, index, prompt, target):
        return torch.where(self.pixels(index)[0] > 0.4, 5.0, -5.0)


@pytest.fixture
def moving():
    """A bright object on slices 2 to 7 that moves a pixel a slice."""
    volume = torch.full((1, 24, 32, 12), 0.1)
    for index in range(2, 8):
        volume[0, 5 + index : 11 + index, 8:16, index] = 0.8
    return volume


@pytest.mark.parametrize("start", [2, 4, 7])
def test_an_object_is_followed_to_its_ends_and_no_further(network, moving, start):
    prompt = {start: SlicePrompt(box=(5 + start, 8, 10 + start, 15))}
    prompted = _Bright(moving, network, EmbeddingCache(), "case")
    alone, followed = (prompted.segment(prompt, 1, propagate=to) for to in (False, True))
    assert alone.any(dim=0).any(dim=0).nonzero().flatten().tolist() == [start]
    assert torch.equal(followed.bool(), moving[0] > 0.4)


def test_what_was_prompted_stays_when_it_is_followed(network, moving):
    prompts = {3: SlicePrompt(box=(8, 8, 13, 15)), 6: SlicePrompt(outside=((12, 9),), box=(11, 8, 16, 15))}
    prompted = _Bright(moving, network, EmbeddingCache(), "case")
    alone, followed = (prompted.segment(prompts, 1, propagate=to) for to in (False, True))
    for index in prompts:
        assert torch.equal(alone[..., index], followed[..., index]) and alone[..., index].any()


def test_what_is_followed_leaves_protected_voxels(network, moving):
    prompted = _Bright(moving, network, EmbeddingCache(), "case")
    neighbour = np.zeros((24, 32, 12), bool)
    neighbour[:, 14:, 3:] = True
    prompt = {4: SlicePrompt(box=(9, 8, 14, 15))}
    followed = prompted.segment(prompt, 1, propagate=True, protected=neighbour).numpy()
    expected = (moving[0] > 0.4).numpy().astype(np.uint8)
    expected[neighbour] *= 2
    np.testing.assert_array_equal(followed[..., 4:], expected[..., 4:])
    assert not (followed[neighbour] == 1).any() and followed[..., 2].any()


def test_a_negative_click_corrects_a_slice_that_was_followed(network, moving):
    moving[0, 20:23, 20:24, 5] = 0.6  # a second object on one slice, which the network takes for the first
    moving[0, 12:14, 16:21, 5] = 0.8
    prompts = {3: SlicePrompt(box=(8, 8, 13, 15)), 7: SlicePrompt(box=(12, 8, 17, 15))}
    prompted = _Bright(moving, network, EmbeddingCache(), "case")
    before = prompted.segment(prompts, 1, propagate=True).bool()
    row, column = before[..., 5].nonzero()[-1].tolist()
    after = prompted.segment({**prompts, 5: SlicePrompt(outside=((row, column),))}, 1, propagate=True).bool()
    assert before[row, column, 5] and not after[row, column, 5] and not (after & ~before).any()
    assert torch.equal(after[..., [0, 1, 2, 3, 4, 6, 7]], before[..., [0, 1, 2, 3, 4, 6, 7]])


def test_nothing_beyond_a_box_in_three_dimensions(network, moving):
    prompts = {index: SlicePrompt(box=(0, 8, 23, 12)) for index in range(3, 7)}
    mask = _Bright(moving, network, EmbeddingCache(), "case").segment(prompts, 1, True).bool()
    expected = moving[0] > 0.4
    expected[..., :3] = expected[..., 7:] = False
    expected[:, 13:] = False
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt"),
        ({0: SlicePrompt(outside=((1, 1),))}, "no prompt"),
        ({6: SlicePrompt(inside=((1, 1),))}, "outside the image of 24 × 32 × 6"),
        ({0: SlicePrompt(inside=((24, 1),))}, "outside the image"),
        ({0: SlicePrompt(box=(0, 0, 5, 40))}, "outside the image"),
        ({0: SlicePrompt(inside=((3.0, 4.0),), outside=((3.2, 3.9),))}, "positive and a negative point on one voxel"),
    ],
)
def test_prompts_that_cannot_be_used(volume, network, prompts, message):
    with pytest.raises(ValueError, match=message):
        slices(volume, network).segment(prompts)


@pytest.mark.parametrize("target", [0, 3, 9, -1])
def test_a_target_that_is_no_class(volume, network, target):
    with pytest.raises(ValueError, match=f"target {target} is not a class of this network: its classes are 1 to 2"):
        slices(volume, network).segment({0: SlicePrompt(inside=((3, 4),))}, target)


def test_unknown_head(volume, network):
    with pytest.raises(ValueError, match="head='x' is unknown"):
        slices(volume, network, "x")
