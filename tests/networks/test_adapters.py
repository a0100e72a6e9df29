import copy
import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medsaga.networks import SamSegmenter
from medsaga.networks.adapters import Adapter, add_adapters
from medsaga.networks.depth_attention import DepthAttention
from medsaga.optimizers import sam_param_groups

ENCODERS = [("vit_test", 64, 2), ("vit_t", 56, 2 + 6 + 2)]
FORMS = [None, 3]


@cache
def segmenter(encoder, size, **options):
    torch.manual_seed(0)
    network = SamSegmenter(encoder, size, num_classes=3, **options)
    for name, parameter in network.named_parameters():
        if "rel_pos" in name or "attention_biases" in name:  # they start from zero, which would hide mistakes
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


def build(encoder, size, depth=None, **options):
    """A network of three classes and the same one with adapters."""
    plain = segmenter(encoder, size, **options)
    adapted = copy.deepcopy(plain)
    add_adapters(adapted, 8, depth)
    return plain, adapted


def randomise(network):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "_adapter." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def images(number, size):
    return torch.rand(number, 1, size, size, generator=torch.Generator().manual_seed(2))


PROMPTS = [
    {},
    {"points": (torch.tensor([[[9.0, 20.0], [30.0, 12.0]]] * 4), torch.tensor([[1.0, 0.0]] * 4))},
    {"boxes": torch.tensor([[4.0, 5.0, 30.0, 40.0]] * 4)},
]

# --- an adapter ------------------------------------------------------------------------------------------------------


def test_an_adapter_by_hand():
    adapter = Adapter(6, 4, condition=True).double()
    x, prompt = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 6).double()
    assert torch.equal(adapter(x, prompt), torch.zeros_like(x)), "the up-projection starts from zero"
    for parameter in (adapter.down_bias, adapter.up, adapter.up_bias):
        nn.init.normal_(parameter)
    down = torch.cat([adapter.down, adapter.down_condition], dim=1)
    low = torch.cat([x, prompt], dim=-1) @ down.T + adapter.down_bias
    low = low * 0.5 * (1 + torch.erf(low / math.sqrt(2)))
    torch.testing.assert_close(adapter(x, prompt), low @ adapter.up.T + adapter.up_bias)


# --- in the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@pytest.mark.parametrize("depth", FORMS)
@torch.no_grad()
def test_at_first_the_logits_are_sams(encoder, size, blocks, depth):
    plain, adapted = build(encoder, size, depth)
    x = images(4, size)
    embedding = plain.encode(x)
    torch.testing.assert_close(adapted.encode(x), embedding, rtol=0, atol=1e-6)
    for prompts in PROMPTS:
        logits = plain.decode(embedding, **prompts)
        torch.testing.assert_close(adapted.decode(embedding, **prompts), logits, rtol=0, atol=1e-6)
    randomise(adapted)
    assert (adapted.encode(x) - embedding).abs().max() > 1e-3
    assert (adapted.decode(embedding, **prompts) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("depth", FORMS)
@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
def test_names_are_those_of_sam_and_the_adapters(encoder, size, blocks, depth):
    plain, adapted = build(encoder, size, depth)
    added = set(adapted.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(adapted.state_dict())
    assert all("_adapter." in name for name in added)
    encoders = [name for name in added if name.startswith("image_encoder.")]
    assert len(encoders) == blocks * (8 if depth is None else 13)
    assert len(added) - len(encoders) == 3 * 4 + 1


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@pytest.mark.parametrize("depth", FORMS)
def test_what_is_trained(encoder, size, blocks, depth):
    _, network = build(encoder, size, depth)
    network.train()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    groups = sam_param_groups(network, rank=None, encoder_lr=0.01, lr=0.01)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(3):  # what comes before an up-projection has no gradient while that is zero
        optimizer.zero_grad()
        network(images(3, size)).square().mean().backward()
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
        optimizer.step()
    changed = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    head = ("final_attn_token_to_image", "norm_final_attn", "mask_tokens", "output_upscaling", "output_hypernetworks")
    trained = {
        name
        for name in before
        if "_adapter." in name
        or name.startswith("mask_decoder.transformer.layers.1.")
        or (name.startswith("mask_decoder.") and any(part in name for part in head))
    }
    # softmax is blind to what is added to all keys alike
    still = {name for name in trained if name.endswith("k_proj.bias")}
    assert trained - still <= changed <= trained
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("depth", FORMS)
@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@pytest.mark.parametrize("options", [{"checkpointing": "blocks"}, {"checkpointing": "least"}, {"offload": True}])
def test_saving_memory_changes_no_gradient(encoder, size, blocks, depth, options):
    if depth is not None and options.get("checkpointing") == "least":
        with pytest.raises(ValueError, match="one image at a time: set checkpointing='blocks'"):
            build(encoder, size, depth, **options)
        return
    found = []
    for chosen in ({}, options):
        _, network = build(encoder, size, depth, **chosen)
        randomise(network)
        network.train()(images(2, size)).square().mean().backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
def test_a_batchs_gradients_are_those_of_its_images(encoder, size, blocks):
    _, network = build(encoder, size)
    randomise(network)
    network.train()
    x = images(2, size)
    network(x).sin().mean().backward()
    whole = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    for item in x.split(1):
        (network(item).sin().mean() / len(x)).backward()
    for name, gradient in whole.items():
        assert (network.get_parameter(name).grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


@pytest.mark.parametrize("precision", ["bf16", "bf16_weights"])
def test_half_precision_keeps_adapters_in_float32(precision):
    _, network = build("vit_test", 64, 2, precision=precision)
    randomise(network)
    network.train()(images(4, 64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        if "_adapter." in name:
            assert parameter.dtype == parameter.grad.dtype == torch.float32, name


def test_the_prompt_reaches_the_first_block_by_its_adapter():
    """The second down-projection alone makes the block's result depend on the prompts' embedding."""
    _, network = build("vit_test", 64)
    randomise(network)
    block = network.mask_decoder.transformer.layers[0]
    queries, keys, pe = torch.rand(1, 4, 256), torch.rand(1, 16, 256), torch.rand(1, 16, 256)
    with torch.no_grad():
        for attention in (block.cross_attn_token_to_image, block.cross_attn_image_to_token):
            attention.q_proj.weight.zero_()  # the embedding does not reach the scores
            attention.k_proj.weight.zero_()
        results = [block(queries, keys, prompt, pe)[0] for prompt in (torch.zeros(1, 4, 256), torch.ones(1, 4, 256))]
        assert (results[0] - results[1]).abs().max() > 1e-3
        block.prompt_adapter.down_condition.zero_()
        results = [block(queries, keys, prompt, pe)[0] for prompt in (torch.zeros(1, 4, 256), torch.ones(1, 4, 256))]
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    "width, depth, message", [(0, None, "adapters: width=0.*at least 1"), (8, 1, "adapters: depth=1.*at least 2")]
)
def test_what_does_not_fit_is_refused(width, depth, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(SamSegmenter("vit_test", 64), width, depth)


# --- along the slices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@torch.no_grad()
def test_depth_attention_is_attention_along_the_slices(encoder, size, blocks):
    """Against attention written out with the projections' own rows, position by position."""
    plain, _ = build(encoder, size)
    torch.manual_seed(3)
    modules = {name: module for name, module in plain.image_encoder.named_modules() if name.endswith(".attn")}
    attention = next(iter(modules.values()))
    dim = attention.qkv.in_features
    branch = DepthAttention(attention, nn.Identity(), 4)
    nn.init.normal_(branch.distance_bias)
    x = torch.randn(4, 2, 3, dim)
    result = branch(x, attention)
    width = dim // attention.num_heads
    qkv = attention.qkv(x)
    if encoder == "vit_t":
        q, k, v = qkv.view(4, 2, 3, attention.num_heads, 3, width).permute(4, 0, 1, 2, 3, 5)
    else:
        q, k, v = qkv.view(4, 2, 3, 3, attention.num_heads, width).permute(3, 0, 1, 2, 4, 5)
    for row in range(2):
        for column in range(3):
            heads = []
            for head in range(attention.num_heads):
                scores = q[:, row, column, head] @ k[:, row, column, head].T / width**0.5
                for i in range(4):
                    for j in range(4):
                        scores[i, j] += branch.distance_bias[head, i - j + 3]
                heads.append(scores.softmax(dim=1) @ v[:, row, column, head])
            expected = F.linear(torch.cat(heads, dim=1), attention.proj.weight, attention.proj.bias)
            torch.testing.assert_close(result[:, row, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@torch.no_grad()
def test_slices_attend_within_their_chunk_only(encoder, size, blocks):
    _, network = build(encoder, size, depth=3)
    randomise(network)
    x = images(8, size)
    whole = network(x)  # chunks of 3, 3 and 2
    for chunk, expected in zip((slice(0, 3), slice(3, 6), slice(6, 8)), (whole[:3], whole[3:6], whole[6:])):
        torch.testing.assert_close(network(x[chunk]), expected, rtol=1e-4, atol=1e-5)
    other = x.clone()
    other[4] = 0
    moved = (network(other) - whole).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert moved.tolist() == [False, False, False, True, True, True, False, False]


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@torch.no_grad()
def test_a_slice_alone_has_no_depth_branch(encoder, size, blocks):
    """Also after training: then it is the network without the branch."""
    _, flat = build(encoder, size)
    _, deep = build(encoder, size, depth=3)
    randomise(deep)
    state = {name: value for name, value in deep.state_dict().items() if ".depth_adapter." not in name}
    flat.load_state_dict(state)
    x = images(1, size)
    torch.testing.assert_close(deep(x), flat(x), rtol=0, atol=1e-6)
