import copy

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention as SamAttention
from timm.models.tiny_vit import Attention as TinyViTAttention
from torch import nn
from torch.utils.checkpoint import checkpoint

from medsaga.networks import SamSegmenter, load_weights
from medsaga.networks.lora import LoRAQueryValue, add_lora
from medsaga.optimizers import sam_param_groups

HEADS, DIM, RANK = 4, 32, 3
ATTENTIONS = {
    "sam": (lambda: SamAttention(DIM, HEADS, use_rel_pos=True, input_size=(4, 4)), (2, 4, 4, DIM)),
    "tiny_vit": (lambda: TinyViTAttention(DIM, DIM // HEADS, HEADS, attn_ratio=1, resolution=(4, 4)), (2, 16, DIM)),
}


def rows(kind: str, part: str) -> torch.Tensor:
    """Where queries ("q"), keys or values ("v") stand in the output, counted out from each model's own reshapes."""
    size = DIM // HEADS
    start = "qkv".index(part)
    if kind == "sam":
        return torch.arange(DIM) + start * DIM
    return torch.cat([torch.arange(size) + (3 * head + start) * size for head in range(HEADS)])


def randomise(module: nn.Module) -> None:
    """Values everywhere, also in B and in tables that start from zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)


@pytest.fixture(params=ATTENTIONS)
def pair(request):
    """Attention with LoRA in float64, and the same attention whose weight is W + B A."""
    make, shape = ATTENTIONS[request.param]
    adapted = make().double()
    add_lora(adapted, RANK)
    adapted.double()
    randomise(adapted)
    dense = make().double()
    lora = adapted.qkv
    weight = lora.weight.detach().clone()
    weight[rows(request.param, "q")] += (lora.lora_b_q @ lora.lora_a_q).detach()
    weight[rows(request.param, "v")] += (lora.lora_b_v @ lora.lora_a_v).detach()
    state = {key: value for key, value in adapted.state_dict().items() if "lora" not in key}
    dense.load_state_dict({**state, "qkv.weight": weight})
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return request.param, adapted, dense, x


def test_forward_is_that_of_the_dense_sum(pair):
    _, adapted, dense, x = pair
    torch.testing.assert_close(adapted(x), dense(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_dense_sum(pair):
    kind, adapted, dense, x = pair
    x_adapted, x_dense = x.clone().requires_grad_(), x.clone().requires_grad_()
    adapted(x_adapted).sin().sum().backward()
    dense(x_dense).sin().sum().backward()
    torch.testing.assert_close(x_adapted.grad, x_dense.grad, rtol=1e-10, atol=1e-12)
    lora = adapted.qkv
    for part, a, b in (("q", lora.lora_a_q, lora.lora_b_q), ("v", lora.lora_a_v, lora.lora_b_v)):
        gradient = dense.qkv.weight.grad[rows(kind, part)]  # of W + B A
        torch.testing.assert_close(a.grad, b.detach().T @ gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(b.grad, gradient @ a.detach().T, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for name, p in adapted.named_parameters() if "lora" not in name)


def test_at_first_nothing_changes():
    qkv = nn.Linear(DIM, 3 * DIM)
    x = torch.randn(5, DIM)
    expected = qkv(x)
    lora = LoRAQueryValue(qkv, RANK, heads=1)
    assert torch.equal(lora(x), expected)
    assert lora.weight is qkv.weight
    # as nn.Linear starts: uniform within 1 / sqrt(inputs)
    assert 0.8 * DIM**-0.5 < lora.lora_a_q.abs().max() <= DIM**-0.5


@pytest.mark.parametrize("rank", [0, DIM + 1])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=f"lora_rank={rank}.*1 to {DIM}"):
        LoRAQueryValue(nn.Linear(DIM, 3 * DIM), rank, heads=1)


def test_an_encoder_without_attention_is_refused():
    with pytest.raises(ValueError, match="Sequential"):
        add_lora(nn.Sequential(nn.Linear(3, 3)), 2)


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
    network = SamSegmenter(encoder, size, num_classes=3, lora_rank=4).train()
    lora = {n for n, p in network.image_encoder.named_parameters() if p.requires_grad}
    assert len(lora) == 4 * blocks
    assert {name.rsplit(".", 1)[-1] for name in lora} == {"lora_a_q", "lora_b_q", "lora_a_v", "lora_b_v"}
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
    network = SamSegmenter(encoder, size, lora_rank=4)
    adapted = [m for m in network.image_encoder.modules() if isinstance(m, LoRAQueryValue)]
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
    network = SamSegmenter(encoder, size, lora_rank=4, **options).train()
    network.load_state_dict(state)
    image = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    network(image).square().mean().backward()
    return {name: p.grad for name, p in network.image_encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("encoder, size, blocks", ENCODERS)
@pytest.mark.parametrize("options", [{"checkpointing": "blocks"}, {"checkpointing": "least"}, {"offload": True}])
def test_saving_memory_changes_no_gradient(encoder, size, blocks, options):
    torch.manual_seed(0)
    start = SamSegmenter(encoder, size, lora_rank=4)
    for name, parameter in start.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.1)
    expected = gradients(encoder, size, start.state_dict())
    for name, gradient in gradients(encoder, size, start.state_dict(), **options).items():
        assert (gradient - expected[name]).norm() < 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("precision", ["bf16", "bf16_weights"])
def test_half_precision_of_the_network(precision):
    network = SamSegmenter("vit_test", 64, lora_rank=4, precision=precision).train()
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
    adapted = SamSegmenter("vit_test", 96, num_classes=4, weights=sam_file, lora_rank=4).eval()
    assert torch.equal(plain(images), adapted(images))


@torch.no_grad()
def test_published_weights_of_lite_medsam_fit():
    images = torch.rand(1, 3, 56, 56)
    torch.manual_seed(0)
    plain = SamSegmenter("vit_t", 56, weights="lite_medsam")
    adapted = SamSegmenter("vit_t", 56, weights="lite_medsam", lora_rank=4)
    assert torch.equal(plain.encode(images), adapted.encode(images))


def test_a_checkpoint_holds_lora_and_loads_strictly(tmp_path):
    network = SamSegmenter("vit_test", 64, lora_rank=4)
    randomise(network)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = SamSegmenter("vit_test", 64, lora_rank=4)
    load_weights(other, tmp_path / "model.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "trained, wanted, message",
    [
        (4, None, "trained with LoRA of rank 4, the network has no LoRA: set network_def#lora_rank=4"),
        (4, 8, "trained with LoRA of rank 4, the network has lora_rank=8: set network_def#lora_rank=4"),
        (None, 4, "trained without LoRA, the network has lora_rank=4: leave out .*samed.json"),
    ],
)
def test_a_checkpoint_of_another_rank_is_refused(tmp_path, trained, wanted, message):
    torch.save(SamSegmenter("vit_test", 64, lora_rank=trained).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(SamSegmenter("vit_test", 64, lora_rank=wanted), tmp_path / "model.pt")
