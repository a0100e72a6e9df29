from __future__ import annotations

import pytest
import timm
import torch
from segment_anything import sam_model_registry
from torch import nn

from medsaga.optimizers import GaLoreAdamW, sam_param_groups

GALORE_KEYS = {"rank", "update_gap", "scale", "projection"}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 32, 32, 40))
        self.rel_pos_h = nn.Parameter(torch.zeros(27, 64))
        self.attention_biases = nn.Parameter(torch.zeros(40, 49))
        self.patch_embed = nn.Conv2d(3, 40, 16)
        self.depthwise = nn.Conv2d(40, 40, 3, groups=40)
        self.qkv = nn.Linear(40, 120)
        self.norm = nn.LayerNorm(40)
        self.lora = nn.Linear(40, 4, bias=False)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_encoder = Encoder()
        self.prompt_encoder = nn.ModuleDict({"no_mask_embed": nn.Embedding(1, 40)})
        self.mask_decoder = nn.Linear(40, 40)


def names(network, groups):
    """Names of each group's parameters."""
    of = {id(p): name for name, p in network.named_parameters()}
    return {group["name"]: {of[id(p)] for p in group["params"]} for group in groups}


def test_groups_are_those_of_the_paper():
    network = Network()
    groups = sam_param_groups(network)
    assert names(network, groups) == {
        "encoder_galore": {"image_encoder.patch_embed.weight", "image_encoder.qkv.weight"},
        "encoder": {
            "image_encoder." + name
            for name in [
                "pos_embed",
                "rel_pos_h",
                "attention_biases",
                "patch_embed.bias",
                "depthwise.weight",
                "depthwise.bias",
                "qkv.bias",
                "norm.weight",
                "norm.bias",
                "lora.weight",
            ]
        },
        "decoder": {"prompt_encoder.no_mask_embed.weight", "mask_decoder.weight", "mask_decoder.bias"},
    }
    assert [group["lr"] for group in groups] == [1e-3, 1e-3, 5e-3]
    assert [group["weight_decay"] for group in groups] == [0.1] * 3
    assert {key: groups[0][key] for key in GALORE_KEYS} == {
        "rank": 16,
        "update_gap": 200,
        "scale": 1.0,
        "projection": "one-sided",
    }
    assert not any(GALORE_KEYS & set(group) for group in groups[1:])


def test_options_reach_their_groups():
    groups = sam_param_groups(
        Network(), 8, encoder_lr=1e-4, lr=1e-2, update_gap=7, scale=0.25, projection="two-sided", weight_decay=0.0
    )
    assert {group["name"]: group["lr"] for group in groups} == {
        "encoder_galore": 1e-4,
        "encoder": 1e-4,
        "decoder": 1e-2,
    }
    assert {key: groups[0][key] for key in GALORE_KEYS} == {
        "rank": 8,
        "update_gap": 7,
        "scale": 0.25,
        "projection": "two-sided",
    }
    assert all(group["weight_decay"] == 0.0 for group in groups)


@pytest.mark.parametrize("projection", ["one-sided", "two-sided"])
@pytest.mark.parametrize("rank", [1, 4, 16, 30, 35, 39, 40])
def test_a_projection_is_used_where_the_state_gets_smaller(rank, projection):
    network = Network()
    groups = sam_param_groups(network, rank=rank, projection=projection)
    for group in groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    optimizer = GaLoreAdamW(groups)
    optimizer.step()
    projected = names(network, groups).get("encoder_galore", set())
    for name, param in network.image_encoder.named_parameters():
        if name in ("qkv.weight", "patch_embed.weight"):
            short, long = sorted((param.shape[0], param.numel() // param.shape[0]))
            # measured where it is projected; where it is not, the formula of GaLore's paper says why
            if f"image_encoder.{name}" in projected:
                held = sum(v.numel() for k, v in optimizer.state[param].items() if "step" not in k)
                assert held < 2 * param.numel()
            else:
                two_sided = 2 * rank**2 + rank * (short + long)
                cost = two_sided if projection == "two-sided" else 2 * rank * long + rank * short
                assert rank >= short or cost >= 2 * param.numel()


def test_without_rank_any_torch_optimizer_takes_the_groups():
    network = Network()
    groups = sam_param_groups(network, rank=None)
    assert [group["name"] for group in groups] == ["encoder", "decoder"]
    assert not any(GALORE_KEYS & set(group) for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    for make in (torch.optim.AdamW, torch.optim.SGD, GaLoreAdamW):
        assert [group["name"] for group in make(groups).param_groups] == ["encoder", "decoder"]


@pytest.mark.parametrize(
    ("frozen", "left"),
    [
        ("image_encoder", ["decoder"]),
        ("prompt_encoder mask_decoder", ["encoder_galore", "encoder"]),
        ("image_encoder.qkv image_encoder.patch_embed", ["encoder", "decoder"]),
    ],
)
def test_frozen_parameters_and_empty_groups_are_left_out(frozen, left):
    network = Network()
    for name in frozen.split():
        network.get_submodule(name).requires_grad_(False)
    groups = sam_param_groups(network)
    assert [group["name"] for group in groups] == left
    assert all(p.requires_grad for group in groups for p in group["params"])


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (["image_encoder.*"], {"encoder_galore": 2, "encoder": 10}),
        (["prompt_encoder.*", "mask_decoder.*"], {"decoder": 3}),
        (["*.qkv.*", "mask_decoder.weight"], {"encoder_galore": 1, "encoder": 1, "decoder": 1}),
        (None, {"encoder_galore": 2, "encoder": 10, "decoder": 3}),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_not_to_be_trained_is_frozen(trained, expected, wrapped):
    network = Network()
    groups = sam_param_groups(nn.ModuleDict({"module": network}) if wrapped else network, trained=trained)
    assert {group["name"]: len(group["params"]) for group in groups} == expected
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}


def test_what_the_network_has_frozen_stays_frozen():
    network = Network()
    network.image_encoder.qkv.requires_grad_(False)
    groups = sam_param_groups(network, trained=["image_encoder.*"])
    assert not network.image_encoder.qkv.weight.requires_grad
    assert "image_encoder.qkv.weight" not in names(network, groups)["encoder_galore"]


@pytest.mark.parametrize("pattern", ["encoder.*", "image_encoder.lora.weight"])
def test_a_pattern_without_a_trainable_parameter_is_refused_before_anything_is_frozen(pattern):
    network = Network()
    network.image_encoder.lora.requires_grad_(False)
    with pytest.raises(ValueError, match=r"trained='.*image_encoder\., mask_decoder\., prompt_encoder\."):
        sam_param_groups(network, trained=["mask_decoder.*", pattern])
    assert network.mask_decoder.weight.requires_grad


@pytest.mark.parametrize("wrappers", [["module"], ["_orig_mod"], ["module", "_orig_mod"]])
def test_wrapped_networks_are_sorted_alike(wrappers):
    plain = wrapped = Network()
    for name in wrappers:
        wrapped = nn.ModuleDict({name: wrapped})  # as DistributedDataParallel and torch.compile prefix names
    assert names(plain, sam_param_groups(wrapped)) == names(plain, sam_param_groups(plain))


def test_another_encoder_prefix():
    network = nn.ModuleDict({"backbone": nn.Linear(40, 80), "head": nn.Linear(80, 2)})
    groups = sam_param_groups(network, encoder_prefix="backbone.")
    assert names(network, groups)["encoder_galore"] == {"backbone.weight"}
    with pytest.raises(ValueError, match=r"'image_encoder\.'.*backbone\., head\."):
        sam_param_groups(network)


def test_a_frozen_network_is_refused():
    with pytest.raises(ValueError, match="requires a gradient"):
        sam_param_groups(Network().requires_grad_(False))


def test_sam_vit_b():
    with torch.device("meta"):
        network = sam_model_registry["vit_b"]()
    groups = sam_param_groups(network)
    sorted_names = names(network, groups)
    # four matrices in each of twelve blocks, the patch embedding and the neck's two convolutions
    assert len(sorted_names["encoder_galore"]) == 12 * 4 + 3
    assert all(name.endswith("weight") for name in sorted_names["encoder_galore"])
    assert "image_encoder.blocks.2.attn.rel_pos_h" in sorted_names["encoder"]
    assert "image_encoder.pos_embed" in sorted_names["encoder"]
    assert "prompt_encoder.no_mask_embed.weight" in sorted_names["decoder"]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    GaLoreAdamW(groups)


def test_tiny_vit():
    with torch.device("meta"):
        network = nn.ModuleDict(
            {"image_encoder": timm.create_model("tiny_vit_5m_224"), "mask_decoder": nn.Linear(8, 8)}
        )
    sorted_names = names(network, sam_param_groups(network))
    assert not any("attention_biases" in name for name in sorted_names["encoder_galore"])
    assert any("attention_biases" in name for name in sorted_names["encoder"])
    assert "image_encoder.stages.1.blocks.0.attn.qkv.weight" in sorted_names["encoder_galore"]
