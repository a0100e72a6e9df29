"""Networks of several channels against the network of three, fed what the projection makes of them."""

import pytest
import torch

from medsaga.networks import SamSegmenter, load_weights
from medsaga.networks.channel_projection import ChannelProjection
from medsaga.networks.pretraining import MaskedAutoencoder
from medsaga.optimizers import GaLoreAdamW, sam_param_groups

SIZE = 64
METHODS = {
    "full": {},
    "LoRA": {"lora": {"rank": 2, "decoder": True}},
    "adapters": {"adapters": {"width": 4}},
    "bf16 weights": {"precision": "bf16_weights"},
}


def _means(image):
    """What the three outputs start from, by hand: of two channels the mean, else every third."""
    if image.shape[1] == 2:
        return torch.stack([image[:, 0], image[:, 1], image.mean(dim=1)], dim=1)
    return torch.stack([image[:, i::3].mean(dim=1) for i in range(3)], dim=1)


def _network(channels, **options):
    torch.manual_seed(0)
    return SamSegmenter("vit_test", SIZE, 3, in_channels=channels, **options)


@pytest.mark.parametrize("channels", [2, 4, 5, 7])
def test_it_starts_from_means_in_which_every_channel_has_a_part(channels):
    image = torch.rand(2, channels, 6, 5)
    projection = ChannelProjection(channels)
    torch.testing.assert_close(projection(image), _means(image))
    assert (projection.weight != 0).any(dim=0).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_logits_are_those_of_the_means(channels):
    image = torch.rand(2, channels, SIZE, SIZE)
    several, three = _network(channels).eval(), _network(3).eval()
    with torch.no_grad():
        torch.testing.assert_close(several(image), three(_means(image)))
        changed = several(image)
        for channel in range(channels):
            other = image.clone()
            other[:, channel] = 0
            assert (several(other) - changed).abs().max() > 1e-4, channel


def test_one_and_three_channels_are_one_network():
    one, three = _network(1), _network(3)
    assert one.state_dict().keys() == three.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, three.state_dict()[key])
    image = torch.rand(1, 1, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(three.eval()(image), one.eval()(image.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_another_number_are_refused(channels):
    with pytest.raises(
        ValueError, match=rf"\(1, 2, {SIZE}, {SIZE}\): it must be \(B, {'4' if channels == 4 else '1 or 3'},"
    ):
        _network(channels)(torch.rand(1, 2, SIZE, SIZE))


def test_no_channel_is_refused():
    with pytest.raises(ValueError, match="in_channels=0"):
        _network(0)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_trained_with_every_method(method):
    network = _network(2, **METHODS[method]).train()
    groups = sam_param_groups(network, rank=2, encoder_lr=1e-4, lr=1e-2)
    group = next(g for g in groups if any(p is network.channel_projection.weight for p in g["params"]))
    assert (group["name"], group["lr"]) == ("decoder", 1e-2)
    before = network.channel_projection.weight.detach().clone()
    optimizer = GaLoreAdamW(groups)
    network(torch.rand(2, 2, SIZE, SIZE)).square().mean().backward()
    optimizer.step()
    assert ((network.channel_projection.weight - before).abs() > 1e-4).all()
    assert network.channel_projection.weight.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_published_weights_are_loaded_beside_it(sam_file, method):
    """Strictly, and the projection stays as it starts."""
    network = _network(2, weights=sam_file, **METHODS[method]).eval()
    three = _network(3, weights=sam_file, **METHODS[method]).eval()
    image = torch.rand(1, 2, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network.encode(image), three.encode(_means(image)))


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_is_saved_and_served(tmp_path, method):
    network = _network(4, **METHODS[method]).eval()
    with torch.no_grad():
        network.channel_projection.weight.add_(torch.rand(3, 4, 1, 1))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(5)
    served = SamSegmenter("vit_test", SIZE, 3, in_channels=4, **METHODS[method]).eval()
    load_weights(served, tmp_path / "model.pt", trained=True)
    image = torch.rand(1, 4, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(served(image), network(image))


@pytest.mark.parametrize(("trained", "wanted", "words"), [
    (2, 4, "of 2 channels .*, but the network takes 4"),
    (1, 2, "of 1 or 3 channels .*, but the network takes 2"),
    (4, 3, "of 4 channels .*, but the network takes 1 or 3"),
])  # fmt: skip
def test_a_checkpoint_of_another_number_says_so(tmp_path, trained, wanted, words):
    torch.save(_network(trained).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"model\.pt does not fit: it was trained on images {words}.*channel_names"):
        load_weights(_network(wanted), tmp_path / "model.pt")


@pytest.mark.parametrize("channels", [2, 3])
def test_pretraining_takes_all_channels(tmp_path, channels):
    torch.manual_seed(0)
    network = MaskedAutoencoder(
        encoder="vit_test", image_size=SIZE, num_classes=4, in_channels=channels, emix_weight=1, shed_weight=1
    )
    network(torch.rand(2, channels, SIZE, SIZE)).backward()
    if channels == 2:
        assert (network.segmenter.channel_projection.weight.grad != 0).all()
    torch.save(network.segmenter.state_dict(), tmp_path / "pretrained.pt")
    SamSegmenter("vit_test", SIZE, 4, weights=tmp_path / "pretrained.pt", in_channels=channels)
