"""Pre-training by hand: which pixels count, what the encoder sees, and the two losses on embeddings."""

import copy
import math

import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

from medsaga.networks import SamSegmenter, load_weights
from medsaga.networks.pretraining import (
    MaskedAutoencoder,
    PretrainingCheckpoint,
    emix_loss,
    masked_error,
    move_patches,
)

SIZES = {"vit_test": 64, "vit_t": 56}  # patches of 16 and of 8 pixels
PATCH = {"vit_test": 16, "vit_t": 8}


def autoencoder(encoder="vit_test", **options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(encoder=encoder, image_size=SIZES[encoder], num_classes=4, **options)


def images(encoder="vit_test", number=2, channels=3) -> torch.Tensor:
    size = SIZES[encoder]
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(1))


def patches_of(image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """The patches of one image, row by row, cut out one at a time."""
    starts = range(0, image.shape[-1], side)
    return [image[:, row : row + side, column : column + side] for row in starts for column in starts]


# --- masked autoencoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "hidden_patches"), [("vit_test", 12), ("vit_t", 37)])  # 75 % of 16, of 49
def test_whole_patches_are_hidden_as_many_in_each_image_and_others_each_time(encoder, hidden_patches):
    network, image = autoencoder(encoder), images(encoder)
    with torch.no_grad():
        network.mask_patch.copy_(torch.rand_like(network.mask_patch) + 2)  # no pixel of an image
    masked, hidden = network.hide(image)
    for item, seen, gone in zip(image, masked, hidden):
        shares = []
        for before, after, flags in zip(*(patches_of(x, PATCH[encoder]) for x in (item, seen, gone))):
            assert torch.equal(after, network.mask_patch if flags.all() else before)
            shares.append(float(flags.float().mean()))
        assert set(shares) == {0.0, 1.0}
        assert sum(shares) == hidden_patches
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden, network.hide(image)[1])


def test_the_loss_is_the_mean_error_of_hidden_pixels():
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    drawn = torch.tensor([[[[0.5, 1.0], [0.0, 1.0]]]])
    hidden = torch.tensor([[[[True, False], [False, True]]]])
    assert float(masked_error(drawn, image, hidden)) == pytest.approx((0.5 + 0.75) / 2)
    # three channels, two images of which one has more hidden pixels: each pixel counts the same
    image, drawn, hidden = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4) < 0.5
    errors = [
        abs(float(drawn[b, c, y, x] - image[b, c, y, x]))
        for b in range(2)
        for c in range(3)
        for y in range(4)
        for x in range(4)
        if hidden[b, 0, y, x]
    ]
    assert float(masked_error(drawn, image, hidden)) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_network_gives_that_loss(encoder, channels):
    network, image = autoencoder(encoder), images(encoder, channels=channels)
    torch.manual_seed(5)
    loss = network(image)
    torch.manual_seed(5)
    masked, hidden = network.hide(image.expand(-1, 3, -1, -1))
    drawn = network.reconstruction(network.segmenter.encode(masked))
    assert drawn.shape == (2, 3, *image.shape[2:])
    assert torch.equal(loss, masked_error(drawn, image, hidden))


@pytest.mark.parametrize("encoder", SIZES)
def test_hidden_pixels_do_not_leak(encoder):
    network, image = autoencoder(encoder).eval(), images(encoder)
    torch.manual_seed(5)
    masked, hidden = network.hide(image)
    others = torch.where(hidden, torch.rand_like(image), image)
    torch.manual_seed(5)
    masked_others, hidden_others = network.hide(others)
    assert torch.equal(hidden, hidden_others)
    drawn, drawn_others = (network.reconstruction(network.segmenter.encode(x)) for x in (masked, masked_others))
    assert torch.equal(drawn, drawn_others)
    torch.manual_seed(5)
    changed_elsewhere = network.hide(image * 0.9)[0]
    assert not torch.equal(drawn, network.reconstruction(network.segmenter.encode(changed_elsewhere)))


def test_a_hidden_patch_of_sams_vit_is_a_learnt_embedding():
    """SimMIM's mask token: the same before positions are added, wherever the patch is and whatever it held."""
    network = autoencoder()
    masked, hidden = network.hide(images())
    normalized = (masked - network.segmenter.pixel_mean) / network.segmenter.pixel_std
    embeddings = network.segmenter.image_encoder.patch_embed(normalized)
    tokens = embeddings[hidden[:, 0, ::16, ::16]]
    assert len(tokens) == 2 * 12
    assert torch.allclose(tokens, tokens[:1].expand_as(tokens), atol=1e-5)


# --- e-Mix -----------------------------------------------------------------------------------------------------------


def test_emix_is_the_cross_entropy_to_both_parts():
    mixed = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    parts = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    share, order = torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    # cosines of the mixtures with the parts: (1, 0) and (√½, √½); temperature 0.2
    p = math.exp(5) / (math.exp(5) + 1)
    first = -(0.75 * math.log(p) + 0.25 * math.log(1 - p))
    assert float(emix_loss(mixed, parts, share, order)) == pytest.approx((first + math.log(2)) / 2, rel=1e-5)


def test_emix_is_least_where_similarities_go_with_the_shares():
    """Of all directions between two parts at right angles, the best has the softmax equal to the shares."""
    share, order, parts = torch.full((2,), 0.7), torch.tensor([1, 0]), torch.eye(2)
    losses = {}
    for degrees in range(91):
        a = math.radians(degrees)
        mixed = torch.tensor([[math.cos(a), math.sin(a)], [math.sin(a), math.cos(a)]])
        losses[degrees] = float(emix_loss(mixed, parts, share, order))
    best = math.radians(min(losses, key=losses.get))
    p = 1 / (1 + math.exp(-5 * (math.cos(best) - math.sin(best))))
    assert p == pytest.approx(0.7, abs=0.02)


def test_mixing_images_mixes_the_embeddings_of_sams_patches():
    encoder = autoencoder().segmenter.image_encoder
    a, b = (encoder.patch_embed(image) + encoder.pos_embed for image in images()[:, None])
    mixture = encoder.patch_embed((0.7 * images()[0] + 0.3 * images()[1])[None]) + encoder.pos_embed
    assert torch.allclose(mixture, 0.7 * a + 0.3 * b, atol=1e-5)


# --- ShED ------------------------------------------------------------------------------------------------------------


def test_patches_change_places_in_a_ring():
    image = images(number=2)
    places = torch.tensor([[3, 0, 10], [5, 6, 15]])
    moved = move_patches(image, places, 16)
    for item, result, (a, b, c) in zip(image, moved, places.tolist()):
        before, after = patches_of(item, 16), patches_of(result, 16)
        came_from = {b: a, c: b, a: c}
        for place in range(16):
            assert torch.equal(after[place], before[came_from.get(place, place)])


@pytest.mark.parametrize("encoder", SIZES)
def test_shed_is_the_cross_entropy_of_finding_the_moved_patches(encoder):
    network, image = autoencoder(encoder, shed_weight=1.0), images(encoder)
    nn.init.zeros_(network.moved.weight)
    patches = (SIZES[encoder] // PATCH[encoder]) ** 2
    share = round(0.15 * patches) / patches
    for bias in (0.0, -1.5):  # a classifier that says the same of all patches
        nn.init.constant_(network.moved.bias, bias)
        p = 1 / (1 + math.exp(-bias))
        expected = -(share * math.log(p) + (1 - share) * math.log(1 - p))
        assert float(network._shed(image).detach()) == pytest.approx(expected, rel=1e-5)


def test_shed_asks_about_the_right_patches(monkeypatch):
    """An encoder that hands on each patch's mean lets a classifier see which have moved."""
    network = autoencoder(shed_weight=1.0)
    ramp = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3).expand(1, 3, -1, -1)

    def embed(image):
        patches = nn.functional.avg_pool2d(image[:, :1], 16)
        moved = patches != torch.arange(16.0).view(1, 1, 4, 4)
        return torch.where(moved, 50.0, -50.0).expand(-1, 256, -1, -1)

    monkeypatch.setattr(network, "_embed", embed)
    nn.init.constant_(network.moved.weight, 1 / 256)
    nn.init.zeros_(network.moved.bias)
    assert float(network._shed(ramp).detach()) < 1e-6


# --- training and the file -------------------------------------------------------------------------------------------


def test_weights_of_zero_leave_a_part_out_and_others_add_it():
    image = images()
    losses = {}
    for name, options in {
        "none": {},
        "emix": {"emix_weight": 2.0},
        "shed": {"shed_weight": 3.0},
        "both": {"emix_weight": 2.0, "shed_weight": 3.0},
    }.items():
        network = autoencoder(**options)
        assert hasattr(network, "moved") == ("shed_weight" in options)
        torch.manual_seed(7)
        losses[name] = float(network(image).detach())
    assert losses["none"] < losses["emix"] < losses["both"]
    assert losses["none"] < losses["shed"]


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("checkpointing", ["off", "blocks", "least"])
def test_every_trained_parameter_has_a_gradient_and_the_rest_is_frozen(encoder, checkpointing):
    network = autoencoder(encoder, emix_weight=0.1, shed_weight=0.1, checkpointing=checkpointing).train()
    if encoder == "vit_test":
        for name, parameter in network.segmenter.image_encoder.named_parameters():
            if "pos" in name:  # tables of zeros
                nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(3)
    network(images(encoder)).backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == trained
    prefix = "segmenter.image_encoder."
    assert {n for n in trained if not n.startswith(prefix)} == {
        "mask_patch",
        "reconstruction.0.weight",
        "reconstruction.0.bias",
        "moved.weight",
        "moved.bias",
    }
    assert len([n for n in trained if n.startswith(prefix)]) == len(list(network.segmenter.image_encoder.parameters()))


def test_half_precision_gives_nearly_the_same_loss():
    image, losses = images(), {}
    full = autoencoder(emix_weight=1.0, shed_weight=1.0)
    for precision in ("fp32", "bf16", "bf16_weights"):
        network = autoencoder(emix_weight=1.0, shed_weight=1.0, precision=precision)
        network.load_state_dict(full.state_dict())
        torch.manual_seed(3)
        loss = network(image)
        loss.backward()
        assert loss.dtype == torch.float32
        losses[precision] = float(loss.detach())
    for loss in losses.values():
        assert loss == pytest.approx(losses["fp32"], rel=0.02)


def test_the_file_loads_as_weights_of_sam_do(sam: Sam, sam_file, tmp_path):
    torch.manual_seed(0)
    network = MaskedAutoencoder(encoder="vit_test", image_size=64, num_classes=4, weights=sam_file, shed_weight=1.0)
    with torch.no_grad():
        for parameter in network.segmenter.image_encoder.parameters():
            parameter.add_(0.125)
    path = tmp_path / "pretrained.pt"
    torch.save(PretrainingCheckpoint(network).state_dict(), path)

    published = SamSegmenter("vit_test", 96, num_classes=4, weights=sam_file)
    segmenter = SamSegmenter("vit_test", 64, num_classes=4, weights=path)
    for name, value in segmenter.state_dict().items():
        if name.startswith("image_encoder."):
            assert torch.equal(value, network.state_dict()[f"segmenter.{name}"]), name
        else:
            assert torch.equal(value, published.state_dict()[name]), name
    assert torch.equal(segmenter.image_encoder.neck[0].weight, sam.image_encoder.neck[0].weight + 0.125)

    # another number of classes, at another size: the class head is fresh, the rest of the decoder as published
    torch.manual_seed(1)
    three = SamSegmenter("vit_test", 128, num_classes=3, weights=path, new_head=True)
    assert len(three.mask_decoder.mask_tokens.weight) == 3
    for name in ("mask_decoder.iou_token.weight", "mask_decoder.transformer.layers.0.mlp.lin1.weight"):
        assert torch.equal(three.state_dict()[name], published.state_dict()[name])
    # a model to serve it is not
    with pytest.raises(ValueError, match="weights to start a training from"):
        load_weights(segmenter, path, trained=True)


def test_the_checkpoint_comes_back_whole():
    first, second = autoencoder(shed_weight=1.0), autoencoder(shed_weight=1.0)
    with torch.no_grad():
        for value in (*first.parameters(), first.segmenter.pixel_mean):
            value.add_(torch.rand_like(value))
    wanted = copy.deepcopy(first.state_dict())
    PretrainingCheckpoint(second).load_state_dict(PretrainingCheckpoint(first).state_dict())
    assert {key: bool(torch.equal(value, wanted[key])) for key, value in second.state_dict().items()} == dict.fromkeys(
        wanted, True
    )
    with pytest.raises(RuntimeError, match=r"moved\.weight"):
        PretrainingCheckpoint(second).load_state_dict(PretrainingCheckpoint(autoencoder()).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0}, "mask_ratio=0: the hidden share"),
        ({"mask_ratio": 1}, "mask_ratio=1"),
        ({"emix_weight": -1}, "emix_weight=-1"),
        ({"shed_weight": -0.5}, "shed_weight=-0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        autoencoder(**options)
