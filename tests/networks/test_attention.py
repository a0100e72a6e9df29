"""Against segment_anything's explicit attention, which holds all scores at once."""

import pytest
import torch
from segment_anything.modeling import transformer
from segment_anything.modeling.image_encoder import Attention
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsaga.networks import attention
from medsaga.networks.attention import RelPosAttention, TwoWayAttention, folded_attention, tiled_attention

FORMS = {"tiled": tiled_attention, "folded": folded_attention}
CASES = {  # images, grid of tokens, grid of the tables, channels, heads
    "windows": (9, (7, 7), (7, 7), 32, 4),
    "whole image": (2, (8, 8), (8, 8), 48, 2),
    "not square": (2, (5, 9), (5, 9), 24, 3),
    "other tables": (1, (6, 4), (4, 5), 20, 2),
    "one head": (3, (3, 2), (3, 2), 8, 1),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Makes RelPosAttention use one of its two forms on the CPU."""
    monkeypatch.setattr(attention, "tiled_attention", FORMS[request.param])
    return request.param


@pytest.fixture(params=[1 << 20, 500, 1], ids=lambda size: f"tile{size}")
def tile(request, monkeypatch):
    monkeypatch.setattr(attention, "_TILE", request.param)


def pair(channels, heads, size):
    torch.manual_seed(0)
    theirs = Attention(channels, heads, use_rel_pos=True, input_size=size)
    for table in (theirs.rel_pos_h, theirs.rel_pos_w):
        nn.init.normal_(table)
    ours = RelPosAttention(channels, heads, size)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gradients(module, x, direction):
    x = x.clone().requires_grad_()
    y = module(x)
    names, parameters = zip(*module.named_parameters())
    return {"output": y.detach()} | dict(zip(("x", *names), torch.autograd.grad(y, (x, *parameters), direction)))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_explicit_forms(form, tile, case):
    images, grid, size, channels, heads = CASES[case]
    ours, theirs = (module.double() for module in pair(channels, heads, size))
    x, direction = (torch.randn(images, *grid, channels, dtype=torch.float64) for _ in range(2))
    expected = gradients(theirs, x, direction)
    for name, value in gradients(ours, x, direction).items():
        assert (value - expected[name]).abs().max() < 1e-9 * expected[name].abs().max(), name


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_results_are_the_explicit_forms_in_single_precision(form, tile, case):
    images, grid, size, channels, heads = CASES[case]
    ours, theirs = pair(channels, heads, size)
    x = torch.randn(images, *grid, channels)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(form):
    ours, theirs = pair(16, 2, (4, 4))
    x = 100 * torch.randn(1, 4, 4, 16)
    for name, value in gradients(ours, x, torch.ones_like(x)).items():
        assert value.isfinite().all(), name
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_half_precision(form):
    images, grid, size, channels, heads = CASES["whole image"]
    ours, theirs = pair(channels, heads, size)
    x, direction = (torch.randn(images, *grid, channels) for _ in range(2))
    expected = gradients(theirs, x, direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradients(ours, x, direction.bfloat16())
    assert actual["output"].dtype == torch.bfloat16
    for name, value in actual.items():
        assert (value - expected[name]).norm() < 0.03 * expected[name].norm(), name


def test_compiled(form):
    images, grid, size, channels, heads = CASES["not square"]
    ours, _ = pair(channels, heads, size)
    x, direction = (torch.randn(images, *grid, channels) for _ in range(2))
    expected = gradients(ours, x, direction)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = x.requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, expected["output"])
    y.backward(direction)
    torch.testing.assert_close(x.grad, expected["x"])
    torch.testing.assert_close(ours.rel_pos_h.grad, expected["rel_pos_h"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_pytorchs_rules(dtype):
    torch.manual_seed(0)
    shapes = ((2, 3, 4, 3, 2, 8), (3, 3, 8), (4, 4, 8))  # qkv and the tables of rows and columns
    arguments = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    results = torch.library.opcheck(torch.ops.medsaga.tiled_attention.default, arguments, raise_exception=False)
    assert set(results.values()) == {"SUCCESS"}, results
    assert {"test_schema", "test_faketensor", "test_autograd_registration"} <= results.keys()
    arguments = tuple(x.detach() for x in arguments)
    out, log_sum = torch.ops.medsaga.tiled_attention(*arguments)
    backward = (torch.ops.medsaga.tiled_attention_backward.default, (torch.randn_like(out), *arguments, out, log_sum))
    results = torch.library.opcheck(*backward, raise_exception=False)
    assert set(results.values()) == {"SUCCESS"}, results


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor made, also within the tiled operators."""

    def __init__(self):
        super().__init__()
        self.elements = 0
        self.inside = {
            torch.ops.medsaga.tiled_attention.default: attention._tiled_forward,
            torch.ops.medsaga.tiled_attention_backward.default: attention._tiled_backward,
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.inside:
            with self:
                return self.inside[func](*args)
        result = func(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("images, side", [(1, 48), (64, 12)])
def test_no_tensor_holds_all_scores(form, images, side):
    ours, theirs = pair(16, 2, (side, side))
    x = torch.randn(images, side, side, 16)
    largest = {}
    for name, module in (("ours", ours), ("theirs", theirs)):
        with LargestTensor() as mode:
            gradients(module, x, torch.ones_like(x))
        largest[name] = mode.elements
    assert largest["theirs"] >= images * 2 * side**4
    # with heads of 8 channels, the folded form's of 8 + 2 * side channels are the largest
    assert largest["ours"] <= max(attention._TILE, images * side**2 * 2 * (16 + 2 * side))
    assert largest["ours"] < largest["theirs"] / 2


@pytest.mark.parametrize("rate", [1, 2])
def test_two_way_attention_is_segment_anythings(rate):
    torch.manual_seed(0)
    theirs = transformer.Attention(32, 4, rate).double()
    ours = TwoWayAttention(32, 4, rate).double()
    ours.load_state_dict(theirs.state_dict())
    q, k, v, direction = (torch.randn(2, n, 32, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7, 5))
    results = []
    for module in (ours, theirs):
        y = module(q, k, v)
        results.append((y, *torch.autograd.grad(y, (q, k, v, *module.parameters()), direction)))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
