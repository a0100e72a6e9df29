import functools

import pytest
import torch
from torch import nn

from medsaga.losses import LogitResolutionDiceCELoss
from medsaga.networks import SamSegmenter

SIZES = {"vit_test": 96, "vit_t": 56}
HALF = ["bf16", "bf16_weights"]


def build(encoder, **options):
    torch.manual_seed(0)
    return SamSegmenter(encoder, image_size=SIZES[encoder], num_classes=3, **options)


def images(encoder):
    return torch.rand(2, 1, SIZES[encoder], SIZES[encoder], generator=torch.Generator().manual_seed(1))


def step(network, image):
    network.zero_grad()
    logits = network.train()(image)
    label = (torch.arange(image.shape[-1]) // 20 % 3).expand(2, 1, image.shape[-1], -1)
    loss = LogitResolutionDiceCELoss()(logits, label)
    loss.backward()
    return loss.detach(), {n: p.grad.float() for n, p in network.named_parameters() if p.grad is not None}


@functools.cache
def exact_step(encoder):
    return step(build(encoder), images(encoder))


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("precision", HALF)
def test_half_precision_is_close_and_its_logits_single(encoder, precision):
    exact, half = build(encoder).eval(), build(encoder, precision=precision).eval()
    with torch.no_grad():
        expected, logits = exact(images(encoder)), half(images(encoder))
        embedding = half.encode(images(encoder))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert half(images(encoder)).dtype == torch.float32
        assert torch.equal(half.decode(embedding), logits)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("checkpointing", ["off", "blocks", "least"])
@pytest.mark.parametrize("precision", HALF)
def test_training_steps_in_half_precision_are_close(encoder, checkpointing, precision):
    expected_loss, expected = exact_step(encoder)
    loss, gradients = step(build(encoder, precision=precision, checkpointing=checkpointing), images(encoder))
    torch.testing.assert_close(loss, expected_loss, rtol=0.01, atol=0)
    assert gradients.keys() == expected.keys()
    total, error = (
        torch.cat([x.flatten() for x in tensors]).norm()
        for tensors in (expected.values(), [gradients[name] - expected[name] for name in expected])
    )
    assert error < 0.1 * total


@pytest.mark.parametrize("encoder", SIZES)
def test_half_weights_are_the_encoders_matrices_and_kernels(encoder):
    network = build(encoder, precision="bf16_weights", lora={"rank": 2})
    weights = {
        f"image_encoder.{name}.weight"
        for name, module in network.image_encoder.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    assert len(weights) > 10
    for name, tensor in network.named_parameters():
        assert tensor.dtype == (torch.bfloat16 if name in weights else torch.float32), name
    assert not any(name.endswith(("bias", "biases")) or "pos" in name or ".lora_" in name for name in weights)


@pytest.mark.parametrize("stored, built", [("fp32", "bf16_weights"), ("bf16_weights", "fp32")])
def test_checkpoints_load_in_the_other_precision(stored, built, tmp_path):
    first = build("vit_test", precision=stored)
    torch.save(first.state_dict(), tmp_path / "own.pt")
    second = build("vit_test", precision=built, weights=tmp_path / "own.pt")
    third = build("vit_test", precision=built)
    third.load_state_dict(first.state_dict())
    fresh = build("vit_test", precision=built).state_dict()
    for name, value in first.state_dict().items():
        for loaded in (second.state_dict()[name], third.state_dict()[name]):
            assert loaded.dtype == fresh[name].dtype
            assert torch.equal(loaded, value.to(loaded.dtype)), name


def test_fp16_is_refused_on_a_cpu():
    network = build("vit_test", precision="fp16")
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU: choose bf16 or fp32 on a CPU"):
        network(images("vit_test"))


def test_an_unknown_choice_lists_the_known():
    with pytest.raises(ValueError, match="precision='int8' is unknown: choose one of fp32, fp16, bf16, bf16_weights"):
        build("vit_test", precision="int8")
