"""Gradients taken inside backward, against the same optimizer without."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from medsaga.optimizers import GaLoreAdamW


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 8))
        self.decoder = nn.Linear(8, 3)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def groups(net, **options):
    matrices = [p for p in net.encoder.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    return [{"params": matrices, "rank": 4, **options}, {"params": [p for p in net.parameters() if id(p) not in ids]}]


def make(in_backward, **options):
    net = Net()
    return net, GaLoreAdamW(
        groups(net), lr=1e-2, weight_decay=0.1, update_gap=3, update_in_backward=in_backward, **options
    )


def batch(step, size=8):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 12, generator=generator), torch.randn(size, 3, generator=generator)


def loss_of(net, step, part=slice(None)):
    x, y = batch(step)
    return nn.functional.mse_loss(net(x[part]), y[part])


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def assert_same(net, other, **tolerance):
    for (name, a), b in zip(net.named_parameters(), other.parameters()):
        if tolerance:
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}", **tolerance)
        else:
            assert torch.equal(a, b), name


@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_gives_the_same_weights_bit_for_bit(max_norm):
    (net, optimizer), (other, reference) = make(True, max_norm=max_norm), make(False, max_norm=max_norm)
    train(net, optimizer, range(10))
    train(other, reference, range(10))
    assert_same(net, other)
    for a, b in zip(optimizer.state_dict()["state"].values(), reference.state_dict()["state"].values()):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_no_full_gradient_is_left_after_backward():
    net, optimizer = make(True)
    alive = []
    taken = optimizer.taken_in_backward
    for param in taken:  # before the next one's turn, this one's is gone
        param.register_post_accumulate_grad_hook(lambda p: alive.append(sum(q.grad is not None for q in taken)))
    loss_of(net, 0).backward()
    assert alive == [0, 0, 0]
    assert all((p.grad is None) == any(p is q for q in taken) for p in net.parameters())


def test_nothing_happens_to_the_weights_before_step():
    net, optimizer = make(True)
    before = copy.deepcopy(net)
    loss_of(net, 0).backward()
    assert_same(net, before)
    assert not optimizer.state
    optimizer.zero_grad()  # forgets
    optimizer.step()
    assert_same(net, before)


def test_validation_in_between_changes_nothing():
    (net, optimizer), (other, reference) = make(True), make(True)
    train(other, reference, range(6))
    for step in range(6):
        with torch.no_grad():
            loss_of(net.eval(), 50 + step)
        net.train()
        train(net, optimizer, [step])
    assert_same(net, other)


def test_accumulation_in_the_projected_space_equals_the_whole_batch():
    (net, optimizer), (other, reference) = make(True), make(False)
    # one step on the whole batch gives both the same basis, which holds for the next two
    train(net, optimizer, [0])
    train(other, reference, [0])
    for group in (optimizer.param_groups[0], reference.param_groups[0]):
        group["update_gap"] = 100
    for step in (1, 2):
        optimizer.zero_grad()
        for part in (slice(0, 4), slice(4, 8)):
            (loss_of(net, step, part) / 2).backward()
        optimizer.step()
        train(other, reference, [step])
    assert_same(net, other, rtol=1e-5, atol=1e-6)


def test_max_norm_bounds_all_gradients_together():
    (net, optimizer), (other, reference) = make(False, max_norm=0.01), make(False)
    loss_of(net, 0).backward()
    loss_of(other, 0).backward()
    optimizer.step()
    plain = [p.grad for p in optimizer.param_groups[1]["params"]]
    before = [p.grad for p in reference.param_groups[1]["params"]]
    factors = torch.stack([a.norm() / b.norm() for a, b in zip(plain, before)])
    torch.testing.assert_close(factors, factors[:1].expand_as(factors))
    low_rank = [s["exp_avg"] / 0.1 for p, s in optimizer.state.items() if "basis_step" in s]
    total = torch.stack([g.norm() for g in [*plain, *low_rank]]).norm()
    torch.testing.assert_close(total, torch.tensor(0.01), rtol=1e-3, atol=0)


def test_max_norm_must_be_positive():
    with pytest.raises(ValueError, match="max_norm"):
        make(True, max_norm=0.0)


@pytest.mark.parametrize("in_backward", [True, False])
def test_loss_scaling_gives_the_same_weights(in_backward):
    (net, optimizer), (other, reference) = make(in_backward), make(False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(other, reference, range(6))
    assert_same(net, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["encoder.0.weight", "encoder.4.weight", "decoder.weight", "encoder.2.bias"])
def test_a_step_with_an_inf_is_skipped_whole(where):
    net, optimizer = make(True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    handle = None
    for step in range(5):
        if step == 3:  # a refresh is due in this step as well
            parameter = dict(net.named_parameters())[where]
            handle = parameter.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), float("inf")))
            before, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 3:
            handle.remove()
            assert_same(net, before)
            assert scaler.get_scale() == 512.0
            for a, b in zip(optimizer.state_dict()["state"].values(), state["state"].values()):
                assert a.keys() == b.keys()
                assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(p.isfinite().all() for p in net.parameters())


def test_without_a_scaler_an_inf_goes_the_same_way_as_outside_backward():
    (net, optimizer), (other, reference) = make(True), make(False)
    for n, o in ((net, optimizer), (other, reference)):
        train(n, o, range(2))
        n.encoder[2].weight.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), float("nan")))
        train(n, o, [2])
    for (name, a), b in zip(net.named_parameters(), other.parameters()):
        assert torch.equal(a.isnan(), b.isnan()), name


def test_unscaling_by_the_scaler_is_refused():
    net, optimizer = make(True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(net, 0)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="max_norm"):
        scaler.step(optimizer)


@pytest.mark.parametrize("saved_at", [1, 3, 4])
def test_resumes_bit_for_bit(saved_at):
    net, optimizer = make(True)
    train(net, optimizer, range(8))
    other, first = make(True)
    train(other, first, range(saved_at))
    file = io.BytesIO()
    torch.save({"net": other.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, second = make(True)
    resumed.load_state_dict(saved["net"])
    second.load_state_dict(saved["optimizer"])
    train(resumed, second, range(saved_at, 8))
    assert_same(net, resumed)


def test_works_with_a_schedule():
    (net, optimizer), (other, reference) = make(True), make(False)
    for n, o in ((net, optimizer), (other, reference)):
        schedule = torch.optim.lr_scheduler.LambdaLR(o, lambda t: (t + 1) / 4)
        for step in range(5):
            train(n, o, [step])
            schedule.step()
    assert_same(net, other)


def test_works_with_checkpointing():
    (net, optimizer), (other, reference) = make(True), make(False)
    for step in range(4):
        x, y = batch(step)
        optimizer.zero_grad()
        hidden = torch.utils.checkpoint.checkpoint(net.encoder, x, use_reentrant=False)
        nn.functional.mse_loss(net.decoder(hidden), y).backward()
        optimizer.step()
    train(other, reference, range(4))
    assert_same(net, other)


def test_a_dropped_optimizer_takes_no_more_gradients():
    net, optimizer = make(True)
    gone = weakref.ref(optimizer)
    train(net, optimizer, range(2))
    del optimizer
    gc.collect()
    assert gone() is None
    loss_of(net, 0).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_copy_takes_the_gradients_of_its_own_parameters():
    net, optimizer = make(True)
    train(net, optimizer, range(2))
    twin, its_optimizer = copy.deepcopy((net, optimizer))
    train(net, optimizer, range(2, 5))
    train(twin, its_optimizer, range(2, 5))
    assert_same(net, twin)
    loss_of(twin, 0).backward()
    assert twin.encoder[0].weight.grad is None


def test_a_state_that_does_not_fit_is_named_in_backward():
    net, optimizer = make(True)
    train(net, optimizer, range(1))
    optimizer.param_groups[0]["rank"] = 2
    with pytest.raises(ValueError, match="does not fit rank=2"):
        loss_of(net, 1).backward()
