from __future__ import annotations

import math

import pytest
import torch

from medsaga.networks.dae_former import DAEFormer, EfficientAttention, TransposeAttention

SMALL = (16, 24, 32)


def test_efficient_attention_is_the_attention_of_all_positions():
    """The paper's equation with the product of all pairs of positions, which the module never forms."""
    torch.manual_seed(0)
    attention = EfficientAttention(6).double()
    query, source = torch.randn(2, 2, 3, 4, 6, dtype=torch.float64)
    out = attention(query, source)
    for item in range(2):
        q = attention.query(query[item].reshape(12, 6)).exp()
        k = attention.key(source[item].reshape(12, 6)).exp()
        v = attention.value(source[item].reshape(12, 6))
        pairs = (q / q.sum(1, keepdim=True)) @ (k / k.sum(0, keepdim=True)).T  # (12, 12)
        torch.testing.assert_close(out[item].reshape(12, 6), attention.proj(pairs @ v))


@torch.no_grad()
def test_transpose_attention_mixes_channels_of_a_head():
    torch.manual_seed(0)
    attention = TransposeAttention(16).double()
    attention.temperature.data.uniform_(0.5, 2)
    x = torch.randn(1, 3, 4, 16, dtype=torch.float64)
    q, k, v = attention.qkv(x.reshape(12, 16)).chunk(3, dim=1)  # (N, C) each, as in the equation
    mixed = torch.empty_like(v)
    for head in range(8):
        channels = (2 * head, 2 * head + 1)
        for c in channels:
            scores = [float(k[:, d] @ q[:, c] / k[:, d].norm() / q[:, c].norm()) for d in channels]
            scores = [math.exp(score / float(attention.temperature[head])) for score in scores]
            mixed[:, c] = sum(score / sum(scores) * v[:, d] for score, d in zip(scores, channels))
    # the module normalises in float32
    torch.testing.assert_close(attention(x).reshape(12, 16), attention.proj(mixed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [16, 48, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_the_image_s_size(size, channels):
    network = DAEFormer(4, SMALL)
    assert network(torch.rand(2, channels, size, size)).shape == (2, 4, size, size)


def test_a_grey_image_is_one_of_three_equal_channels():
    network, image = DAEFormer(2, SMALL), torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(network(image), network(image.repeat(1, 3, 1, 1)))


def test_an_image_s_result_does_not_depend_on_its_batch():
    network, images = DAEFormer(2, SMALL), torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient():
    """DistributedDataParallel waits for all of them."""
    network = DAEFormer(3, SMALL)
    network(torch.rand(2, 1, 32, 32)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_position_matters():
    """Attention alone is blind to positions: a shifted object would give the same logits, shifted or not."""
    torch.manual_seed(0)
    network = DAEFormer(2, SMALL).eval()
    image = torch.zeros(1, 1, 64, 64)
    image[..., 8:24, 8:24] = 1
    with torch.no_grad():
        logits = network(image)
    assert not torch.allclose(logits, logits.flip(-1), atol=1e-3)


def test_it_learns_a_disc():
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    label = ((rows - 13) ** 2 + (columns - 18) ** 2 < 64).long()[None]
    image = label[:, None] * 0.5 + 0.1 * torch.rand(1, 1, 32, 32)
    network = DAEFormer(2, (8, 8, 8))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), label).backward()
        optimizer.step()
    mask = network(image).argmax(1)
    dice = 2 * (mask * label).sum() / (mask.sum() + label.sum())
    assert dice > 0.8


def test_half_precision_does_not_overflow():
    """A sum of squares over 64 × 64 positions is beyond float16's range."""
    torch.manual_seed(0)
    attention, x = TransposeAttention(16), 30 * torch.randn(1, 64, 64, 16)
    attention.temperature.data.fill_(0.1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        half = attention(x).float()
    torch.testing.assert_close(half, attention(x).detach(), rtol=0.01, atol=0.3)


def test_number_of_parameters_is_what_the_docstring_says():
    with torch.device("meta"):
        network = DAEFormer(9)
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} million" in DAEFormer.__doc__


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32, 40), (1, 32, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 16"):
        DAEFormer(2, SMALL)(torch.rand(shape))


@pytest.mark.parametrize("options", [{"num_classes": 1}, {"widths": (8, 16)}, {"widths": (8, 16, 20)}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DAEFormer(**{"num_classes": 2, **options})
