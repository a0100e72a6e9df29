"""Many boxes at once against one box at a time, by plain passes through the network."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medsaga.inferers import BoxInferer
from medsaga.inferers.box_inferer import _BoxedSlices
from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square, undo_fit_square


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", image_size=64, num_classes=4).eval()
    with torch.no_grad():  # fresh weights give logits of nearly 0, which are of one sign
        for mlp in network.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(20)
    return network


@pytest.fixture
def image():
    return torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(1))


def random_boxes(number, seed=0, depth=None):
    random = torch.Generator().manual_seed(seed)
    limits = torch.tensor([32, 24] + ([depth] if depth else []))
    corners = (torch.rand(number, 2, len(limits), generator=random) * limits).floor().sort(dim=1).values
    return corners.flatten(1)


@torch.no_grad()
def one_by_one(network, image, boxes):
    """Logits (n, k, H, W), each from an embedding of its own; 24 × 32 pixels go to 64 × 64, a pixel becomes two."""
    shape = tuple(image.shape[2:])
    logits = []
    for x0, y0, x1, y1 in boxes.tolist():
        corners = torch.tensor([[x0, y0, x1 + 1, y1 + 1]]) * 2 - 0.5
        logits.append(undo_fit_square(network(fit_square(image, 64), boxes=corners), 64, shape)[0])
    return torch.stack(logits)


def settled(logits):
    """Numbers from 1 of the largest, 0 where none is positive."""
    return torch.cat([torch.zeros(1, *logits.shape[1:]), logits]).argmax(dim=0)


@pytest.mark.parametrize("per_pass", [1, 4, 7, 100])
def test_is_equal_to_one_box_at_a_time(network, image, per_pass):
    boxes = random_boxes(20)
    expected = one_by_one(network, image, boxes)[:, 0]
    found = BoxInferer(boxes_per_pass=per_pass)(image, network, boxes)
    assert found.shape == (1, 1, 24, 32) and found.dtype == torch.uint8
    largest = expected.amax(dim=0)
    clear = (largest.abs() > 1e-4) & (expected.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-4)
    assert torch.equal(found[0, 0].long()[clear], settled(expected)[clear])
    assert clear.float().mean() > 0.99 and len(found.unique()) > 3
    slices = _BoxedSlices(image[0], network, "sam_boxes")
    with torch.no_grad():
        together = slices.margins(0, [(y0, x0, y1, x1) for x0, y0, x1, y1 in boxes.tolist()])
    assert float((together - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_class_head_gives_the_class_seen_most_in_the_box(network, image):
    boxes = random_boxes(9, seed=3)
    logits = one_by_one(network, image, boxes)
    margins = []
    for (x0, y0, x1, y1), own in zip(boxes.int().tolist(), logits):
        seen = 1 + int(own.softmax(0)[1:, y0 : y1 + 1, x0 : x1 + 1].mean((1, 2)).argmax())
        margins.append(own[seen] - own[[c for c in range(4) if c != seen]].amax(0))
    expected = torch.stack(margins)
    found = BoxInferer("classes", 4)(image, network, boxes)[0, 0].long()
    clear = (expected.amax(0).abs() > 1e-4) & (expected.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-4)
    assert torch.equal(found[clear], settled(expected)[clear]) and clear.float().mean() > 0.99
    assert len(found.unique()) > 2


def test_a_volumes_boxes_are_decoded_on_their_slices_only(network):
    volume = torch.rand(1, 1, 24, 32, 6, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([[2.0, 3, 1, 20, 20, 3], [10, 5, 3, 30, 22, 4], [0, 0, 3, 31, 23, 3]])
    found = BoxInferer(boxes_per_pass=2)(volume, network, boxes)
    assert found.shape == volume.shape
    for z in range(6):
        own = [i for i, box in enumerate(boxes.tolist()) if box[2] <= z <= box[5]]
        if not own:
            assert not found[..., z].any()
            continue
        flat = boxes[own][:, [0, 1, 3, 4]]
        alone = BoxInferer()(volume[..., z], network, flat)
        numbers = torch.tensor([0, *[i + 1 for i in own]], dtype=torch.uint8)
        assert torch.equal(found[..., z], numbers[alone.long()])
    assert len(found.unique()) > 2


def test_a_slice_is_encoded_once_and_slices_without_boxes_never(network, monkeypatch):
    encoded, decoded = [], []
    encode, decode = network.encode, network.decode
    monkeypatch.setattr(network, "encode", lambda image: encoded.append(1) or encode(image))
    monkeypatch.setattr(network, "decode", lambda e, p, b: decoded.append(len(b)) or decode(e, p, b))
    volume = torch.rand(1, 1, 24, 32, 5)
    boxes = torch.cat([random_boxes(9), torch.zeros(9, 2)], dim=1)[:, [0, 1, 4, 2, 3, 5]]
    boxes[:, 2], boxes[:, 5] = 1, 2
    BoxInferer(boxes_per_pass=4)(volume, network, boxes)
    assert len(encoded) == 2 and decoded == [4, 4, 1] * 2


def test_more_boxes_than_a_byte_counts(network, image):
    boxes = random_boxes(300)
    found = BoxInferer(boxes_per_pass=32)(image, network, boxes)
    assert found.dtype == torch.int32 and int(found.max()) > 255
    assert torch.equal(found, BoxInferer(boxes_per_pass=50)(image, network, boxes))


def test_boxes_reaching_beyond_the_image_are_cut_and_the_affine_is_kept(network, image):
    affine = torch.diag(torch.tensor([0.5, 0.7, 1.0], dtype=torch.float64))
    within, beyond = torch.tensor([[3.0, 4, 31, 23]]), torch.tensor([[3.0, 4, 40, 24]])
    found = BoxInferer()(MetaTensor(image, affine=affine), network, beyond)
    assert torch.equal(found.affine, affine)
    assert torch.equal(found.as_tensor(), BoxInferer()(image, network, within))


def test_no_box_is_no_object(network, image):
    assert not BoxInferer()(image, network, torch.zeros(0, 4)).any()


@pytest.mark.parametrize(
    ("inputs", "boxes", "message"),
    [
        ((1, 1, 24, 32), [[1, 1, 1, 5, 5, 5]], r"\(N, 4\)"),
        ((1, 1, 24, 32, 3), [[1, 1, 5, 5]], r"\(N, 6\)"),
        ((2, 1, 24, 32), [[1, 1, 5, 5]], "one image"),
        ((1, 1, 24, 32), [[1, 1, 5, 5], [9, 1, 8, 5]], "box 2.*empty or outside"),
        ((1, 1, 24, 32), [[32, 1, 40, 5]], "box 1.*32 × 24"),
        ((1, 1, 24, 32, 3), [[1, 1, 3, 5, 5, 9]], "box 1.*32 × 24 × 3"),
    ],
)
def test_wrong_boxes_are_refused(network, inputs, boxes, message):
    with pytest.raises(ValueError, match=message):
        BoxInferer()(torch.zeros(inputs), network, torch.tensor(boxes))


def test_wrong_settings_are_refused(network, image):
    with pytest.raises(ValueError, match="boxes_per_pass"):
        BoxInferer(boxes_per_pass=0)
    with pytest.raises(ValueError, match="head"):
        BoxInferer("box")(image, network, torch.zeros(0, 4))
