import pytest
import torch
from monai.data import MetaTensor

from medsaga.networks import SamSegmenter, mask_prompt

SIZE = 96
POINTS = (torch.tensor([[[10.0, 20.0], [50.0, 60.0]]]), torch.tensor([[1, 0]]))
BOX = torch.tensor([[8.0, 16.0, 70.0, 60.0]])
MASK = mask_prompt(torch.rand(1, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(3)) > 0.7)
PROMPTS = {
    "none": {},
    "points": {"points": POINTS},
    "box": {"boxes": BOX},
    "both": {"points": POINTS, "boxes": BOX},
    "mask": {"points": POINTS, "boxes": BOX, "masks": MASK},
}


@pytest.fixture(scope="module")
def network(sam_file):
    return SamSegmenter("vit_test", image_size=SIZE, num_classes=4, weights=sam_file).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def batch_of_prompts(kind, count):
    """Prompts of PROMPTS for several images, each shifted by a few pixels."""
    shift = torch.arange(count)[:, None] * 3.0
    prompts = dict(PROMPTS[kind])
    if "points" in prompts:
        coords, labels = prompts["points"]
        prompts["points"] = (coords + shift[..., None], labels.expand(count, -1))
    if "boxes" in prompts:
        prompts["boxes"] = prompts["boxes"] + shift
    if "masks" in prompts:
        prompts["masks"] = prompts["masks"] + shift[..., None, None]
    return prompts


def item(prompts, i):
    one = {}
    if "points" in prompts:
        one["points"] = tuple(value[[i]] for value in prompts["points"])
    one.update({key: prompts[key][[i]] for key in ("boxes", "masks") if key in prompts})
    return one


@pytest.mark.parametrize("kind", PROMPTS)
@torch.no_grad()
def test_logits_are_sams_own(network, sam, images, kind):
    prompts = PROMPTS[kind]
    embedding = sam.image_encoder(sam.preprocess(255 * images[:1]))
    sparse, dense = sam.prompt_encoder(
        points=prompts.get("points"), boxes=prompts.get("boxes"), masks=prompts.get("masks")
    )
    expected, _ = sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    logits = network(images[:1], **prompts)
    assert logits.shape == (1, 4, SIZE // 4, SIZE // 4)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PROMPTS)
@torch.no_grad()
def test_a_batch_equals_its_images(network, images, kind):
    prompts = batch_of_prompts(kind, 3)
    together = network(images, **prompts)
    apart = [network(images[[i]], **item(prompts, i)) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PROMPTS)
@torch.no_grad()
def test_encode_then_decode_is_forward(network, images, kind):
    prompts = batch_of_prompts(kind, 3)
    assert torch.equal(network.decode(network.encode(images), **prompts), network(images, **prompts))


@pytest.mark.parametrize("kind", ["points", "box", "both"])
@torch.no_grad()
def test_one_embedding_takes_many_prompts(network, images, kind):
    prompts = batch_of_prompts(kind, 5)
    embedding = network.encode(images[:1])
    together = network.decode(embedding, **prompts)
    apart = [network.decode(embedding, **item(prompts, i)) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_points_change_nothing_but_fill_the_batch(network, images):
    coords, labels = POINTS
    # SAM adds one such point itself, so the reference is the same click padded on both sides of it.
    padded = (torch.cat([coords, coords], 1), torch.cat([labels, torch.full_like(labels, -1)], 1))
    moved = (torch.cat([coords, coords + 9], 1), padded[1])
    assert torch.equal(network(images[:1], points=padded), network(images[:1], points=moved))


@torch.no_grad()
def test_grey_images_are_repeated(network, images):
    grey = images[:, :1]
    torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)))


@torch.no_grad()
def test_monai_tensors_go_through(network, images):
    assert torch.equal(network(MetaTensor(images)), network(images))


@torch.no_grad()
def test_mixed_precision_keeps_positions_exact(network, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sparse = []
        hook = network.prompt_encoder.register_forward_hook(lambda module, args, output: sparse.append(output[0]))
        logits = network(images, **batch_of_prompts("box", 3))
        hook.remove()
    assert sparse[0].dtype == torch.float32
    exact = network(images, **batch_of_prompts("box", 3))
    assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("encoder, size, mask_size", [("vit_test", 64, 16), ("vit_t", 32, 32)])
def test_what_is_trainable_gets_a_gradient_and_nothing_else(encoder, size, mask_size):
    network = SamSegmenter(encoder, image_size=size, num_classes=3).train()
    logits = network(torch.rand(2, 1, size, size))
    assert logits.shape == (2, 3, mask_size, mask_size)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name.rsplit(".", 1)[0] for name, p in network.named_parameters() if not p.requires_grad}
    roots = ("prompt_encoder.point_embeddings", "prompt_encoder.not_a_point_embed", "prompt_encoder.mask_downscaling")
    assert all(name.startswith((*roots, "mask_decoder.iou_prediction_head")) for name in frozen)
    assert len(frozen) == 4 + 1 + 5 + 3


def test_clicks_train_too():
    network = SamSegmenter("vit_test", image_size=64, num_classes=2).train()
    points = (torch.tensor([[[10.0, 20.0]], [[30.0, 40.0]]]), torch.tensor([[1], [-1]]))
    network(
        torch.rand(2, 3, 64, 64), points=points, boxes=torch.tensor([[1.0, 2, 30, 40], [5, 6, 60, 50]])
    ).sum().backward()
    assert network.image_encoder.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("train_prompts", [False, True])
@pytest.mark.parametrize("kind", PROMPTS)
def test_every_trained_parameter_has_a_gradient_whatever_the_prompts(kind, train_prompts):
    """Or DDP would wait for it."""
    network = SamSegmenter("vit_test", image_size=SIZE, num_classes=2, train_prompts=train_prompts).train()
    network(torch.rand(1, 3, SIZE, SIZE), **PROMPTS[kind]).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    assert all(p.requires_grad for p in network.prompt_encoder.parameters()) == train_prompts


def test_training_mode_leaves_running_statistics_alone():
    network = SamSegmenter("vit_t", image_size=32)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert network.train() is network and network.training
    network(torch.rand(2, 1, 32, 32))
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_normalisation_is_saved():
    network = SamSegmenter("vit_test", image_size=64)
    assert {"pixel_mean", "pixel_std"} <= set(network.state_dict())
    assert (network.image_size, network.num_classes) == (64, 2)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 64, 64), r"\(1, 3, 64, 64\).*\(B, 1 or 3, 96, 96\)"),
        ((1, 2, SIZE, SIZE), "1 or 3"),
        ((3, SIZE, SIZE), "B, 1 or 3"),
    ],
)
def test_other_images_are_refused(network, shape, message):
    with pytest.raises(ValueError, match=message):
        network(torch.rand(shape))


def test_integer_images_are_refused(network):
    with pytest.raises(ValueError, match="uint8.*floating point"):
        network(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))


@pytest.mark.parametrize(
    "count, prompts, message",
    [
        (1, {"boxes": torch.rand(4)}, r"boxes have shape \(4,\)"),
        (1, {"points": (torch.rand(1, 2), torch.ones(1))}, r"points have coordinates \(1, 2\)"),
        (1, {"points": (torch.rand(1, 3, 2), torch.ones(1, 2))}, r"labels \(1, 2\)"),
        (3, {"boxes": torch.rand(2, 4)}, "2 boxes for 3 images"),
        (2, {"boxes": torch.rand(1, 4)}, "1 boxes for 2 images"),
        (1, {"masks": torch.rand(1, 1, SIZE, SIZE)}, r"masks have shape .* they must be"),
        (2, {"masks": torch.rand(1, 1, SIZE // 4, SIZE // 4)}, "1 masks for 2 images"),
        (1, {"boxes": torch.rand(2, 4), "points": (torch.rand(3, 1, 2), torch.ones(3, 1))}, "3 point sets and 2 boxes"),
    ],
)
def test_other_prompts_are_refused(network, images, count, prompts, message):
    with pytest.raises(ValueError, match=message):
        network(images[:count], **prompts)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes=1.*background"):
        SamSegmenter("vit_test", image_size=64, num_classes=1)
