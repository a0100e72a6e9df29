from __future__ import annotations

import math

import pytest
import torch

from medsaga.networks.dae_former import (
    DAEFormer,
    DualAttention,
    EfficientAttention,
    MixFFN,
    PatchExpanding,
    SkipCrossAttention,
    TransposeAttention,
)

SMALL = (16, 24, 32)


def test_efficient_attention_is_the_attention_of_all_positions():
    """The paper's equation with the product of all pairs of positions, which the module never forms."""
    torch.manual_seed(0)
    attention = EfficientAttention(6).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    out = attention(x)
    for item in range(2):
        q, k, v = (layer(x[item].reshape(12, 6)) for layer in (attention.query, attention.key, attention.value))
        torch.testing.assert_close(out[item].reshape(12, 6), attention.proj(_pairs(q, k) @ v))


def _pairs(query, key):
    """How much each position (row) takes from each (column): softmax over channels times softmax over positions."""
    query, key = query.exp(), key.exp()
    return (query / query.sum(1, keepdim=True)) @ (key / key.sum(0, keepdim=True)).T


def _norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def _random_norms(module):
    """Norms start as the identity, which would hide one that is missing or at another place."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.uniform_(-1, 1)
    return module.double()


@torch.no_grad()
def test_mix_ffn_adds_the_convolution_to_its_input_and_norms_the_sum():
    torch.manual_seed(0)
    mlp, x = _random_norms(MixFFN(4, 6)), torch.randn(1, 3, 5, 4, dtype=torch.float64)
    wide = x @ mlp.widen.weight.T + mlp.widen.bias  # (1, 3, 5, 6)
    mixed = torch.zeros_like(wide)
    for i in range(3):
        for j in range(5):
            for c in range(6):
                mixed[0, i, j, c] = mlp.mix.bias[c] + sum(
                    mlp.mix.weight[c, 0, a, b] * wide[0, i + a - 1, j + b - 1, c]
                    for a in range(3)
                    for b in range(3)
                    if 0 <= i + a - 1 < 3 and 0 <= j + b - 1 < 5
                )
    summed = _norm(mixed + wide, mlp.norm)
    gelu = summed * 0.5 * (1 + torch.erf(summed / math.sqrt(2)))
    torch.testing.assert_close(mlp(x), gelu @ mlp.narrow.weight.T + mlp.narrow.bias)


@torch.no_grad()
def test_a_skip_asks_with_the_encoder_s_features_and_answers_with_the_decoder_s():
    """As in the authors' code: no projection of queries, keys and values, and decoder before encoder in the sum."""
    torch.manual_seed(0)
    skip = _random_norms(SkipCrossAttention(4, 6))
    features, deep = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 6, dtype=torch.float64)
    fitted = deep.reshape(6, 6) @ skip.fit.weight.T + skip.fit.bias
    query = _norm(features.reshape(6, 4), skip.norm)
    attended = _pairs(query, query) @ _norm(fitted, skip.norm)
    attended = _norm(attended @ skip.reproject.weight.T + skip.reproject.bias, skip.norm_attended)
    x = torch.cat([fitted, features.reshape(6, 4)], 1) + attended
    x = x + skip.mlp(_norm(x, skip.norm_mlp).view(1, 3, 2, 8)).view(6, 8)
    torch.testing.assert_close(skip(features[None], deep[None]).view(6, 4), x @ skip.join.weight.T + skip.join.bias)


@torch.no_grad()
def test_a_dual_block_attends_to_positions_first():
    torch.manual_seed(0)
    block, x = _random_norms(DualAttention(8)), torch.randn(1, 3, 4, 8, dtype=torch.float64)
    y = x
    parts = (block.positions, block.mlps[0], block.channels, block.mlps[1])
    for norm, part in zip(block.norms, parts):
        y = y + part(_norm(y, norm))
    torch.testing.assert_close(block(x), y)


@torch.no_grad()
def test_patches_expand_row_by_row():
    """Channel group p f + q of a position becomes row p and column q of its patch."""
    expanding = PatchExpanding(3, 2, 2).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    wide, out = x @ expanding.expand.weight.T, torch.empty(1, 4, 6, 2, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            group = 2 * (i % 2) + j % 2
            out[0, i, j] = wide[0, i // 2, j // 2, 2 * group : 2 * group + 2]
    torch.testing.assert_close(expanding(x), _norm(out, expanding.norm))


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
            scores = [math.exp(score * float(attention.temperature[head])) for score in scores]
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
    for _ in range(30):
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
    attention.temperature.data.fill_(10)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        half = attention(x).float()
    torch.testing.assert_close(half, attention(x).detach(), rtol=0.01, atol=0.3)


def test_number_of_parameters_is_the_authors_less_those_that_take_no_part():
    """The authors' network by its description, with 9 classes: 27,631,737 of 48,073,065 are in the decoder."""

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    def mix_ffn(width, inner, norms):
        return linear(width, inner) + 10 * inner + linear(inner, width) + norms * 2 * inner

    def dual(c, norms):
        return 8 * c + 4 * linear(c, c) + 3 * c * c + linear(c, c) + 8 + 2 * mix_ffn(c, 4 * c, norms)

    def cross(c, norms):
        return 2 * c + linear(c, 2 * c) + 8 * c + mix_ffn(2 * c, 4 * c, norms)

    def decoder(norms):
        first = linear(160, 128) + cross(128, norms) + linear(256, 128) + 2 * dual(128, norms) + 16 * 128 * 128 + 256
        second = linear(256, 320) + cross(320, norms) + linear(640, 320) + 2 * dual(320, norms) + 2 * 320 * 320 + 320
        return first + linear(128, 9) + second + 2 * 512 * 512 + 512

    def encoder(norms):
        patches = linear(49 * 3, 128) + linear(9 * 128, 320) + linear(9 * 320, 512)
        return patches + sum(2 * dual(c, norms) + 4 * c for c in (128, 320, 512))

    idle = linear(512, 512) + cross(512, 3) + linear(1024, 512) + 2 * dual(512, 3)  # the decoder's deepest level
    assert decoder(3) + idle == 27_631_737
    assert encoder(3) + decoder(3) + idle == 48_073_065
    with torch.device("meta"):
        network = DAEFormer(9)
    count = sum(p.numel() for p in network.parameters())
    assert count == encoder(1) + decoder(1)
    assert f"{count / 1e6:.1f} million" in DAEFormer.__doc__


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32, 40), (1, 32, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 16"):
        DAEFormer(2, SMALL)(torch.rand(shape))


@pytest.mark.parametrize("options", [{"num_classes": 1}, {"widths": (8, 16)}, {"widths": (8, 16, 20)}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DAEFormer(**{"num_classes": 2, **options})
