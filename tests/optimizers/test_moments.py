"""Moments in 8 bits."""

import io

import pytest
import torch
from torch import nn
from torchao.optim.subclass_8bit import OptimState8bit

from medsaga.optimizers import GaLoreAdamW
from medsaga.optimizers.moments import is_8bit, new_moments, read_moments, write_moments


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train(param, optimizer, steps, seed=0):
    signal = random(param.shape[0], 4, seed=99) @ random(4, param.shape[1], seed=98)
    for step in range(steps):
        param.grad = signal + random(*param.shape, seed=seed + step)
        optimizer.step()


def test_a_byte_an_element_and_a_scale_for_256():
    moments = new_moments((64, 256), nn.Parameter(torch.zeros(256, 256)), 8)
    assert is_8bit(moments)
    assert sum(m.nbytes for m in moments.values()) == 2 * (64 * 256 + 64 * 4)
    assert not is_8bit(new_moments((64, 256), nn.Parameter(torch.zeros(256, 256)), 32))
    assert not is_8bit(new_moments((3, 11), nn.Parameter(torch.zeros(3, 11)), 8))


def test_what_is_written_is_read_within_the_quantisation():
    state = new_moments((64, 256), nn.Parameter(torch.zeros(256, 256)), 8)
    first, second = random(64, 256), random(64, 256, seed=1).square()
    write_moments(state, first, second)
    a, b = read_moments(state)
    assert (a - first).abs().max() < 0.02 * first.abs().max()
    assert (b - second).abs().max() < 0.02 * second.abs().max()


def test_a_second_moment_too_small_for_its_block_makes_no_huge_step():
    # 1 and 1e-5 in one block: the square 1e-10 is stored as 0, 1e-5 itself is not
    param = nn.Parameter(torch.zeros(64, 256))
    optimizer = GaLoreAdamW([param], lr=1e-3, state_bits=8)
    gradient = torch.full((64, 256), 1e-5)
    gradient[:, 0] = 1.0
    for _ in range(3):
        param.grad = gradient.clone()
        optimizer.step()
    assert param.abs().max() < 3.5e-3


def test_large_tensors_are_quantised_in_pieces_as_torchao_does_it_at_once():
    shape = (1600, 1024)
    state = new_moments(shape, nn.Parameter(torch.zeros(shape)), 8)
    values = {"exp_avg": random(*shape), "exp_avg_sq": random(*shape, seed=1).square()}
    write_moments(state, *values.values())
    for name, value in values.items():
        reference = OptimState8bit.zeros(shape, signed=name == "exp_avg")
        reference.copy_(value)
        assert torch.equal(state[name], reference.codes)
        assert torch.equal(state[f"{name}_scale"], reference.scale)
        if name == "exp_avg":
            assert torch.equal(read_moments(state)[0], reference.dequantize())


@pytest.mark.parametrize("rank", [None, 16])
def test_goes_the_way_of_float32(rank):
    results = []
    for bits in (32, 8):
        param = nn.Parameter(random(256, 320, seed=5))
        start = param.detach().clone()
        optimizer = GaLoreAdamW([param], lr=1e-3, rank=rank, update_gap=10, state_bits=bits)
        train(param, optimizer, 30)
        results.append(param.detach() - start)
        assert is_8bit(optimizer.state[param]) == (bits == 8)
    full, low = results
    assert (full - low).norm() < 0.1 * full.norm()


def test_resumes_bit_for_bit_from_a_file():
    whole, part = (nn.Parameter(random(256, 320, seed=5)) for _ in range(2))
    options = {"lr": 1e-3, "rank": 16, "update_gap": 4, "state_bits": 8}
    optimizer = GaLoreAdamW([whole], **options)
    train(whole, optimizer, 10)
    first = GaLoreAdamW([part], **options)
    train(part, first, 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = GaLoreAdamW([part], **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(part, resumed, 5, seed=5)
    assert torch.equal(whole, part)
    a, b = optimizer.state[whole], resumed.state[part]
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("before, after", [(8, 32), (32, 8)])
def test_the_width_may_change_on_resume(before, after):
    param = nn.Parameter(random(256, 320))
    optimizer = GaLoreAdamW([param], rank=16, state_bits=before)
    train(param, optimizer, 3)
    other = GaLoreAdamW([param], rank=16, state_bits=after)
    other.load_state_dict(optimizer.state_dict())
    assert is_8bit(other.state[param]) == (after == 8)
    for a, b in zip(read_moments(optimizer.state[param]), read_moments(other.state[param])):
        assert (a - b).abs().max() < 0.02 * a.abs().max()
    train(param, other, 3)


def test_state_of_vit_b_matrices_is_small():
    # 12 blocks: qkv, proj and the two layers of the MLP, rank 16, against two float32 moments in full
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
    for bits, bound in ((32, 0.03), (8, 0.015)):
        params = [nn.Parameter(random(*shape)) for shape in shapes]
        optimizer = GaLoreAdamW(params, rank=16, state_bits=bits)
        for param in params:
            param.grad = random(*param.shape, seed=1)
        optimizer.step()
        tensors = [t for state in optimizer.state.values() for t in state.values()]
        assert sum(t.nbytes for t in tensors) <= bound * sum(2 * p.nbytes for p in params)


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="state_bits"):
        GaLoreAdamW([nn.Parameter(torch.zeros(4, 4))], state_bits=4)
