import functools

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medsaga.networks import SamSegmenter
from medsaga.networks.checkpointing import CHECKPOINTING, image_by_image, offloaded, recomputed

SIZES = {"vit_test": 96, "vit_t": 56}
PROMPTS = {"boxes": torch.tensor([[8.0, 16, 70, 60], [10, 10, 50, 80]])}
CHOICES = [(checkpointing, offload) for checkpointing in CHECKPOINTING for offload in (False, True)]


def build(encoder, **options):
    torch.manual_seed(0)
    network = SamSegmenter(encoder, image_size=SIZES[encoder], num_classes=3, **options)
    for name, parameter in network.named_parameters():
        if "pos" in name or "biases" in name or name.endswith("conv3.bn.weight"):  # zero at first, and hiding mistakes
            nn.init.normal_(parameter, std=0.2)
    return network.train()


def build_double(encoder, **options):
    network = build(encoder, **options).double()
    network.prompt_encoder.float()  # it encodes positions in single precision and takes no other
    return network


def images(encoder, count=2):
    return torch.rand(count, 3, SIZES[encoder], SIZES[encoder], generator=torch.Generator().manual_seed(1))


def step(network, image, **prompts):
    """Logits and gradients of a training step whose loss weighs each logit differently."""
    network.zero_grad()
    logits = network(image, **prompts)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@functools.cache
def plain_step(encoder):
    return step(build_double(encoder), images(encoder).double())


@functools.cache
def plain_prompted_step():
    return step(build_double("vit_test"), images("vit_test").double(), **PROMPTS)


def assert_same(actual, expected, relative):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # The gradients of the keys' biases are zero but for rounding, hence the 1.
        error, scale = (actual[name] - value).abs().max(), max(value.abs().max(), 1)
        assert error <= relative * scale, f"{name}: {error / scale}"


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what the forward pass keeps for backward, each storage once."""

    def __init__(self):
        self.storages = {}
        super().__init__(self._pack, lambda x: x)

    def _pack(self, x):
        self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("checkpointing, offload", CHOICES[1:])
def test_a_step_is_the_same(encoder, checkpointing, offload):
    expected = plain_step(encoder)
    assert len(expected) > 50 and all(gradient.any() for gradient in expected.values())
    actual = step(build_double(encoder, checkpointing=checkpointing, offload=offload), images(encoder).double())
    assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize("encoder", SIZES)
def test_blocks_as_a_whole_keep_every_bit(encoder):
    expected = step(build(encoder), images(encoder))
    assert_same(step(build(encoder, checkpointing="blocks"), images(encoder)), expected, 0)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_prompts_and_metatensors_go_through(checkpointing):
    network = build_double("vit_test", checkpointing=checkpointing)
    image = images("vit_test").double()
    assert_same(step(network, image, **PROMPTS), plain_prompted_step(), 1e-6)
    assert_same(step(network, MetaTensor(image), **PROMPTS), plain_prompted_step(), 1e-6)


@pytest.mark.parametrize("encoder", SIZES)
def test_each_choice_keeps_less(encoder):
    encoder_only, whole = [], []
    for checkpointing in CHECKPOINTING:
        network = build(encoder, checkpointing=checkpointing)
        parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
        for kept, run in ((encoder_only, network.encode), (whole, network)):
            counter = KeptBytes()
            with counter:
                run(images(encoder))
            kept.append(sum(size for pointer, size in counter.storages.items() if pointer not in parameters))
    assert encoder_only[2] <= encoder_only[1] < 0.6 * encoder_only[0], encoder_only
    assert whole[2] < 0.6 * whole[1] and whole[1] < whole[0], whole


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("checkpointing", CHECKPOINTING[1:])
def test_nothing_is_recomputed_outside_training(encoder, checkpointing, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("recomputed")

    network = build(encoder, checkpointing=checkpointing)
    monkeypatch.setattr("medsaga.networks.checkpointing.checkpoint", refuse)
    with pytest.raises(AssertionError, match="recomputed"):
        network(images(encoder))
    with torch.no_grad():
        network(images(encoder))
    network.eval()(images(encoder)).sum().backward()


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_gradients_are_freed_in_a_hook_once_each(encoder, checkpointing):
    network = build(encoder, checkpointing=checkpointing)
    expected = step(network, images(encoder))
    seen = {}

    def take(name):
        def hook(parameter):
            assert name not in seen
            seen[name], parameter.grad = parameter.grad, None

        return hook

    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(take(name))
    logits = step(network, images(encoder))
    assert_same(logits | seen, expected, 1e-6)


@pytest.mark.parametrize("piece", [recomputed, image_by_image])
def test_dropout_is_repeated(piece):
    x = torch.ones(4, 1000, requires_grad=True)
    y = piece(nn.Dropout(0.5), x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) and 0 < (y == 0).sum() < y.numel()


def test_offloading_is_for_what_the_forward_pass_keeps():
    x = torch.rand(3, requires_grad=True)
    for enabled in (False, True):
        with offloaded(enabled, x.device):
            y = x.exp()
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], x.exp())


def test_an_unknown_choice_lists_the_known():
    with pytest.raises(ValueError, match="checkpointing='all' is unknown: choose one of off, blocks, least"):
        SamSegmenter("vit_test", image_size=64, checkpointing="all")
