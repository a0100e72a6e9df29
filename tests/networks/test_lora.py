import copy
import re

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention as SamAttention
from segment_anything.modeling.transformer import Attention as TwoWayAttention
from timm.models.tiny_vit import Attention as TinyViTAttention
from torch import nn
from torch.utils.checkpoint import checkpoint

from medsaga.networks import SamSegmenter, load_weights, merge_lora
from medsaga.networks.lora import LoRALinear, add_lora, lora_options
from medsaga.networks.merge import main, merge_file
from medsaga.optimizers import sam_param_groups

HEADS, DIM, RANK = 4, 32, 3
ATTENTIONS = {
    "sam": (lambda: SamAttention(DIM, HEADS, use_rel_pos=True, input_size=(4, 4)), (2, 4, 4, DIM)),
    "tiny_vit": (lambda: TinyViTAttention(DIM, DIM // HEADS, HEADS, attn_ratio=1, resolution=(4, 4)), (2, 16, DIM)),
    "decoder": (lambda: Itself(TwoWayAttention(DIM, HEADS, downsample_rate=2)), (2, 16, DIM)),
}
LAYERS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}  # of the decoder's attention


class Itself(nn.Module):
    """Attention of an input to itself."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(q=x, k=x, v=x)


def where(kind: str, part: str) -> tuple[str, torch.Tensor]:
    """Layer and rows of its output that hold a projection, counted out from each model's own reshapes."""
    if kind == "decoder":
        return f"attention.{LAYERS[part]}", torch.arange(DIM if part == "o" else DIM // 2)
    if part == "o":
        return "proj", torch.arange(DIM)
    size, start = DIM // HEADS, "qkv".index(part)
    if kind == "sam":
        return "qkv", torch.arange(DIM) + start * DIM
    return "qkv", torch.cat([torch.arange(size) + (3 * head + start) * size for head in range(HEADS)])


def randomise(module: nn.Module) -> None:
    """Values everywhere, also in B and in tables that start from zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)


@pytest.fixture(params=[(kind, parts) for kind in ATTENTIONS for parts in ("q", "qv", "qkvo")], ids="-".join)
def pair(request):
    """Attention with LoRA in float64, and the same attention whose weights are W + B A."""
    kind, parts = request.param
    make, shape = ATTENTIONS[kind]
    adapted = make().double()
    add_lora(adapted, RANK, parts)
    adapted.double()
    randomise(adapted)
    dense = make().double()
    state = {key: value.clone() for key, value in adapted.state_dict().items() if "lora" not in key}
    for part in parts:
        name, rows = where(kind, part)
        layer = adapted.get_submodule(name)
        update = getattr(layer, f"lora_b_{part}") @ getattr(layer, f"lora_a_{part}")
        state[f"{name}.weight"][rows] += update.detach()
    dense.load_state_dict(state)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return request.param, adapted, dense, x


def test_forward_is_that_of_the_dense_sum(pair):
    _, adapted, dense, x = pair
    torch.testing.assert_close(adapted(x), dense(x), rtol=1e-12, atol=1e-12)


def test_merged_weights_are_the_dense_sum(pair):
    _, adapted, dense, _ = pair
    merged = merge_lora(adapted.state_dict())
    assert merged.keys() == dense.state_dict().keys()
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(merged[name], value, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_dense_sum(pair):
    (kind, parts), adapted, dense, x = pair
    x_adapted, x_dense = x.clone().requires_grad_(), x.clone().requires_grad_()
    adapted(x_adapted).sin().sum().backward()
    dense(x_dense).sin().sum().backward()
    torch.testing.assert_close(x_adapted.grad, x_dense.grad, rtol=1e-10, atol=1e-12)
    for part in parts:
        name, rows = where(kind, part)
        layer = adapted.get_submodule(name)
        a, b = getattr(layer, f"lora_a_{part}"), getattr(layer, f"lora_b_{part}")
        gradient = dense.get_submodule(name).weight.grad[rows]  # of W + B A
        torch.testing.assert_close(a.grad, b.detach().T @ gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(b.grad, gradient @ a.detach().T, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for name, p in adapted.named_parameters() if "lora" not in name)


def test_at_first_nothing_changes():
    qkv = nn.Linear(DIM, 3 * DIM)
    x = torch.randn(5, DIM)
    expected = qkv(x)
    lora = LoRALinear(qkv, RANK, "qkv", "qv")
    assert torch.equal(lora(x), expected)
    assert lora.weight is qkv.weight
    # as nn.Linear starts: uniform within 1 / sqrt(inputs)
    assert 0.8 * DIM**-0.5 < lora.lora_a_q.abs().max() <= DIM**-0.5


@pytest.mark.parametrize("rank", [0, DIM + 1])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=f"lora: rank={rank}.*1 to {DIM}"):
        LoRALinear(nn.Linear(DIM, 3 * DIM), rank, "qkv", "qv")


def test_an_encoder_without_attention_is_refused():
    with pytest.raises(ValueError, match="Sequential"):
        add_lora(nn.Sequential(nn.Linear(3, 3)), 2)


@pytest.mark.parametrize("projections", ["", "x", "qq", "q+v"])
def test_other_letters_are_refused(projections):
    with pytest.raises(ValueError, match=f"lora: projections={re.escape(repr(projections))}: .*for example 'qv'"):
        SamSegmenter("vit_test", 64, lora={"rank": 2, "projections": projections})


@pytest.mark.parametrize("lora", [{"mlp": True}, {"rank": 4, "rnak": 4}])
def test_a_mapping_without_rank_or_with_a_key_unknown_is_refused(lora):
    with pytest.raises(TypeError, match="'rank'|'rnak'"):
        SamSegmenter("vit_test", 64, lora=lora)


@pytest.mark.parametrize("pair", [("sam", "qv"), ("tiny_vit", "qv")], indirect=True, ids="-".join)
def test_half_precision_keeps_a_and_b_in_float32(pair):
    _, adapted, _, x = pair
    autocast = copy.deepcopy(adapted).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = autocast(x.float())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert autocast.qkv.lora_a_q.grad.dtype == torch.float32

    half = copy.deepcopy(adapted).qkv
    for name, parameter in half.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if "lora" in name else torch.bfloat16)
    output = half(x.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), adapted.qkv(x), rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert half.lora_b_v.grad.dtype == torch.float32


def test_activation_checkpointing_changes_no_gradient(pair):
    _, adapted, _, x = pair
    adapted(x).sin().sum().backward()
    plain = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    checkpoint(adapted, x, use_reentrant=False).sin().sum().backward()
    for name, gradient in plain.items():
        assert torch.equal(adapted.get_parameter(name).grad, gradient), name


# --- in the network --------------------------------------------------------------------------------------------------

ENCODERS = [("vit_test", 64, 2), ("vit_t", 56, 2 + 6 + 2)]


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
def test_what_is_trained(encoder, size, blocks):
    network = SamSegmenter(encoder, size, num_classes=3, lora={"rank": 4}).train()
    lora = {n for n, p in network.image_encoder.named_parameters() if p.requires_grad}
    assert len(lora) == 4 * blocks
    assert {name.rsplit(".", 1)[-1] for name in lora} == {"lora_a_q", "lora_b_q", "lora_a_v", "lora_b_v"}
    assert all(re.search(r"\.attn\.qkv\.lora_", name) for name in lora)  # as in checkpoints of earlier versions
    rest = {n for n, p in network.named_parameters() if p.requires_grad and not n.startswith("image_encoder.")}
    plain = SamSegmenter(encoder, size, num_classes=3)
    assert rest == {n for n, p in plain.named_parameters() if p.requires_grad and not n.startswith("image_encoder.")}
    assert "prompt_encoder.no_mask_embed.weight" in rest

    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    groups = sam_param_groups(network, rank=None, encoder_lr=0.01, lr=0.01)
    assert {group["name"]: len(group["params"]) for group in groups} == {"encoder": len(lora), "decoder": len(rest)}
    optimizer = torch.optim.AdamW(groups)
    for _ in range(2):  # in the first step A has no gradient yet, as B is zero
        optimizer.zero_grad()
        network(torch.rand(2, 1, size, size)).square().mean().backward()
        optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"image_encoder.{name}" for name in lora} | rest


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
def test_a_step_moves_keys_nowhere(encoder, size, blocks):
    """What the update adds to a projection, read off with a unit input at a time, is zero in the rows of the keys."""
    network = SamSegmenter(encoder, size, lora={"rank": 4})
    adapted = [m for m in network.image_encoder.modules() if isinstance(m, LoRALinear)]
    assert len(adapted) == blocks
    with torch.no_grad():
        for lora in adapted:
            lora.lora_b_q.fill_(1.0)
            lora.lora_b_v.fill_(1.0)
            added = lora(torch.eye(lora.in_features)) - nn.Linear.forward(lora, torch.eye(lora.in_features))
            touched = (added != 0).any(dim=0)
            if encoder == "vit_t":  # head by head: q, k, v
                touched = touched.view(lora.heads, 3, -1).transpose(0, 1)
                assert lora.heads == lora.in_features // 32
            touched = touched.reshape(3, -1)
            assert touched[0].all() and not touched[1].any() and touched[2].all()


def gradients(encoder, size, state, **options):
    network = SamSegmenter(encoder, size, lora={"rank": 4}, **options).train()
    network.load_state_dict(state)
    image = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    network(image).square().mean().backward()
    return {name: p.grad for name, p in network.image_encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@pytest.mark.parametrize("options", [{"checkpointing": "blocks"}, {"checkpointing": "least"}, {"offload": True}])
def test_saving_memory_changes_no_gradient(encoder, size, blocks, options):
    torch.manual_seed(0)
    start = SamSegmenter(encoder, size, lora={"rank": 4})
    for name, parameter in start.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.1)
    expected = gradients(encoder, size, start.state_dict())
    for name, gradient in gradients(encoder, size, start.state_dict(), **options).items():
        assert (gradient - expected[name]).norm() < 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("precision", ["bf16", "bf16_weights"])
def test_half_precision_of_the_network(precision):
    network = SamSegmenter("vit_test", 64, lora={"rank": 4}, precision=precision).train()
    network(torch.rand(2, 1, 64, 64)).square().mean().backward()
    qkv = network.image_encoder.blocks[0].attn.qkv
    assert qkv.weight.dtype == (torch.bfloat16 if precision == "bf16_weights" else torch.float32)
    for name, parameter in qkv.named_parameters():
        if "lora" in name:
            assert parameter.dtype == parameter.grad.dtype == torch.float32


@torch.no_grad()
def test_weights_of_sams_format_are_the_frozen_part(sam_file):
    images = torch.rand(2, 3, 96, 96)
    plain = SamSegmenter("vit_test", 96, num_classes=4, weights=sam_file).eval()
    adapted = SamSegmenter("vit_test", 96, num_classes=4, weights=sam_file, lora={"rank": 4}).eval()
    assert torch.equal(plain(images), adapted(images))


@torch.no_grad()
def test_published_weights_of_lite_medsam_fit():
    images = torch.rand(1, 3, 56, 56)
    torch.manual_seed(0)
    plain = SamSegmenter("vit_t", 56, weights="lite_medsam")
    adapted = SamSegmenter("vit_t", 56, weights="lite_medsam", lora={"rank": 4})
    assert torch.equal(plain.encode(images), adapted.encode(images))


def test_a_checkpoint_holds_lora_and_loads_strictly(tmp_path):
    network = SamSegmenter("vit_test", 64, lora={"rank": 4})
    randomise(network)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = SamSegmenter("vit_test", 64, lora={"rank": 4})
    load_weights(other, tmp_path / "model.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "trained, wanted, message",
    [
        (
            {"rank": 4},
            None,
            r"with LoRA .* has no LoRA: set network_def#lora#rank=4.*/samed\.json.*merge",
        ),
        ({"rank": 4}, {"rank": 8}, r"the network has lora#rank=8,.*: set network_def#lora#rank=4, as"),
        (None, {"rank": 4}, r"without LoRA, but the network has lora#rank=4.*: leave out .*/samed\.json"),
        (
            {"rank": 4, "decoder": True},
            {"rank": 4},
            r": set network_def#lora#decoder=True, as the overlay bundles/methods/samed_s\.json",
        ),
        (
            {"rank": 4},
            {"rank": 4, "projections": "qkvo", "mlp": True},
            ": set network_def#lora#projections=qv, network_def#lora#mlp=False, as",
        ),
    ],
)
def test_a_checkpoint_of_other_lora_is_refused(tmp_path, trained, wanted, message):
    torch.save(SamSegmenter("vit_test", 64, lora=trained).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(SamSegmenter("vit_test", 64, lora=wanted), tmp_path / "model.pt")


# --- in MLPs and in the mask decoder ---------------------------------------------------------------------------------

METHODS = {
    "samed": {},
    "samed_s": {"decoder": True},
    "lite_lora": {"projections": "qkvo", "mlp": True},
    "all": {"projections": "qkvo", "mlp": True, "decoder": True},
}
HEAD = "mask_decoder.(iou_token|mask_tokens|output_upscaling|output_hypernetworks_mlps)"


@pytest.fixture(params=[*((method, "vit_test") for method in METHODS), ("all", "vit_t")], ids="-".join)
def built(request):
    """A method, and its network with LoRA that changes nothing yet."""
    method, encoder = request.param
    torch.manual_seed(0)
    size = {name: size for name, size, _ in ENCODERS}[encoder]
    return method, SamSegmenter(encoder, size, num_classes=3, lora={"rank": 4, **METHODS[method]})


def images_for(network, seed=0):
    size = network.image_size
    return torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def adapt(network):
    """Make LoRA matter, as after some training."""
    for name, parameter in network.named_parameters():
        if ".lora_b_" in name:
            nn.init.normal_(parameter, std=0.1)


@torch.no_grad()
def test_at_first_the_logits_are_those_without_lora(built):
    _, network = built
    plain = SamSegmenter(network.encoder, network.image_size, num_classes=3)
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if ".lora_" not in key})
    images = images_for(network)
    torch.testing.assert_close(network.eval()(images), plain.eval()(images), rtol=0, atol=1e-6)


def test_only_what_should_be_has_gradients(built):
    method, network = built
    adapt(network)
    network.train()(images_for(network)).square().mean().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in network.named_parameters() if p.requires_grad}

    lora = {name for name in with_gradient if ".lora_" in name}
    blocks = {"vit_test": 2, "vit_t": 10}[network.encoder]
    letters = 2 * (6 if "mlp" in str(METHODS[method]) else 2)  # A and B; of a MLP two layers
    assert sum(name.startswith("image_encoder.") for name in lora) == blocks * letters
    in_decoder = sorted(name for name in lora if name.startswith("mask_decoder."))
    if method == "samed_s":  # three attentions in each of two layers, and the last one
        assert len(in_decoder) == (3 * 2 + 1) * letters
        assert {re.sub(r".*\.(\w+_proj)\.", r"\1.", name) for name in in_decoder} == {
            f"{part}_proj.lora_{ab}_{part}" for part in "qv" for ab in "ab"
        }
    others = {name for name in with_gradient - lora if not re.match(HEAD, name)}
    if "decoder" in METHODS[method]:
        assert others == {"prompt_encoder.no_mask_embed.weight"}
    else:
        others.remove("prompt_encoder.no_mask_embed.weight")
        assert others
        assert all(name.startswith("mask_decoder.transformer.") for name in others)


@torch.no_grad()
def test_merged_weights_answer_the_same_without_lora(built, tmp_path):
    _, network = built
    adapt(network)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    merge_file(tmp_path / "model.pt", tmp_path / "merged.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "merged.pt"}
    plain = SamSegmenter(network.encoder, network.image_size, num_classes=3)
    before = plain.eval()(images_for(network))
    load_weights(plain, tmp_path / "merged.pt", trained=True)
    expected = network.eval()(images_for(network))
    assert (before - expected).abs().max() > 0.01
    torch.testing.assert_close(plain(images_for(network)), expected, rtol=1e-5, atol=1e-5)


def test_options_are_read_from_the_weights(built):
    method, network = built
    expected = {"rank": 4, "projections": "qv", "mlp": False, "decoder": False, **METHODS[method]}
    assert lora_options(network.state_dict()) == expected


@pytest.mark.parametrize("built", [(method, "vit_test") for method in METHODS], indirect=True, ids="-".join)
def test_training_goes_on_from_its_state(built):
    """Two steps, of which the second after a way through files, end as two steps in one go."""
    method, network = built
    other = SamSegmenter(network.encoder, network.image_size, num_classes=3, lora={"rank": 4, **METHODS[method]})
    optimizers = [torch.optim.AdamW(sam_param_groups(n, rank=None, lr=0.01)) for n in (network, other)]

    def step(network, optimizer, seed):
        optimizer.zero_grad()
        network.train()(images_for(network, seed)).square().mean().backward()
        optimizer.step()

    step(network, optimizers[0], 1)
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    step(network, optimizers[0], 2)
    step(other, optimizers[1], 2)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("options", [{"checkpointing": "blocks"}, {"checkpointing": "least"}])
def test_saving_memory_changes_no_gradient_of_mlps_and_decoder(options):
    torch.manual_seed(0)
    networks = [SamSegmenter("vit_test", 64, lora={"rank": 4, **METHODS["all"]}, **choice) for choice in ({}, options)]
    adapt(networks[0])
    networks[1].load_state_dict(networks[0].state_dict())
    for network in networks:
        network.train()(images_for(network)).square().mean().backward()
    for (name, p), other in zip(networks[0].named_parameters(), networks[1].parameters()):
        if p.grad is not None:
            assert (p.grad - other.grad).norm() <= 1e-4 * p.grad.norm(), name


@pytest.mark.parametrize("method, published", [("samed", 18.81), ("samed_s", 6.32)])
def test_as_much_is_updated_as_published(method, published, tmp_path):
    """MiB of the file that SAMed's code saves: LoRA, prompt encoder, and mask decoder without what is frozen of it.

    Names of tensors and of the file take some 0.01 MiB.
    """
    with torch.device("meta"):
        network = SamSegmenter("vit_b", 512, num_classes=9, lora={"rank": 4, **METHODS[method]})
    saved = {
        name: torch.zeros(value.shape)
        for name, value in network.state_dict().items()
        if ".lora_" in name
        or name.startswith("prompt_encoder.")
        or (name.startswith("mask_decoder.") and not (method == "samed_s" and ".transformer." in name))
    }
    torch.save(saved, tmp_path / "epoch_159.pth")
    assert (tmp_path / "epoch_159.pth").stat().st_size / 2**20 == pytest.approx(published, abs=0.02)


def test_a_file_without_lora_is_not_merged(tmp_path, monkeypatch):
    torch.save(SamSegmenter("vit_test", 64).state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr("sys.argv", ["merge", str(tmp_path / "model.pt"), str(tmp_path / "merged.pt")])
    with pytest.raises(SystemExit, match=r"model\.pt holds no LoRA"):
        main()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
