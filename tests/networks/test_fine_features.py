"""The encoder's finer features in the decoder."""

import pytest
import torch
from torch.nn import functional as F

from medsaga.networks import SamSegmenter, load_weights
from medsaga.networks.fine_features import FineFeatures
from medsaga.optimizers import sam_param_groups

SIZE = 56


def network(fine=True, seed=0, **options):
    torch.manual_seed(seed)
    return SamSegmenter("vit_t", SIZE, 3, fine_features=fine, **options)


def learnt(net):
    """What is added is no longer zero."""
    torch.manual_seed(1)
    for layer in net.fine_features.widen:
        torch.nn.init.normal_(layer.weight)
    return net


IMAGE = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[3.0, 5.0, 30.0, 40.0], [1.0, 1.0, 20.0, 20.0], [9.0, 9.0, 50.0, 50.0]])


@torch.no_grad()
def test_at_first_they_change_no_logit():
    assert torch.equal(network()(IMAGE), network(fine=False)(IMAGE))


@torch.no_grad()
def test_they_travel_with_the_embedding():
    """To the pixels they come from: the decoder's sum against the stages' own features, laid out by interpolation."""
    parts = FineFeatures((2, 3))
    finest, finer, embedding = torch.rand(2, 2, 16, 16), torch.rand(2, 3, 8, 8), torch.rand(2, 256, 4, 4)
    for layer in parts.widen:
        torch.nn.init.normal_(layer.weight)
    joined = parts.join(embedding, (finest, finer))
    assert joined.shape == (2, 448, 4, 4)
    found, *added = parts.split(joined)
    assert torch.equal(found, embedding)
    for feature, narrow, widen, sum_ in zip((finest, finer), parts.narrow, parts.widen, added):
        torch.testing.assert_close(sum_, widen(narrow(feature)))


@torch.no_grad()
def test_one_pixel_changes_the_logits_around_it_most():
    """Through the finest features alone: the coarse embedding is held."""
    net = learnt(network()).eval()
    embedding = net.encode(IMAGE[:1])
    other = embedding.clone()
    finest = F.pixel_shuffle(other[:, 256 : 256 + 128], 4)
    finest[..., 20, 33] += 5
    other[:, 256 : 256 + 128] = F.pixel_unshuffle(finest, 4)
    changed = (net.decode(other) - net.decode(embedding)).abs().sum(dim=1)[0]
    assert changed[20, 33] > 0 and (changed > 1e-6).sum() == 1


@torch.no_grad()
def test_a_set_of_prompts_for_one_image_is_as_each_alone():
    net = learnt(network()).eval()
    embedding = net.encode(IMAGE[:1])
    together = net.decode(embedding, boxes=BOXES)
    apart = torch.cat([net.decode(embedding, boxes=box[None]) for box in BOXES])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", ["blocks", "least"])
def test_gradients_are_those_without_checkpointing(checkpointing):
    plain, saving = (learnt(network(checkpointing=kind)).train() for kind in ("off", checkpointing))
    for net in (plain, saving):
        net(IMAGE).square().mean().backward()
    for (name, expected), found in zip(plain.named_parameters(), saving.parameters()):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert all(p.grad is not None and p.grad.any() for p in plain.fine_features.parameters())


def test_they_are_trained_with_the_decoder():
    net = network()
    decoder = next(group for group in sam_param_groups(net) if group["name"] == "decoder")
    known = {id(p) for p in decoder["params"]}
    assert all(id(p) in known for p in net.fine_features.parameters())


def test_weights_of_a_network_without_them_load_and_give_its_logits(tmp_path):
    before = network(fine=False, seed=3)
    torch.save(before.state_dict(), tmp_path / "model.pt")
    net = network(seed=4)
    load_weights(net, tmp_path / "model.pt", trained=True)
    with torch.no_grad():
        assert torch.equal(net.eval()(IMAGE), before.eval()(IMAGE))


def test_a_network_without_them_says_what_is_missing(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="fine_features"):
        load_weights(network(fine=False), tmp_path / "model.pt")


def test_an_encoder_of_one_resolution_has_none():
    with pytest.raises(ValueError, match="vit_test has features of one resolution"):
        SamSegmenter("vit_test", 64, 3, fine_features=True)
