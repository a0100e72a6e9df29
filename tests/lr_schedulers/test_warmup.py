from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from medsaga.lr_schedulers import WarmupPolynomialLR


def make_optimizer(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in rates or (1.0,)])


def rates_of(optimizer, schedule, steps):
    """The rates at which each optimizer step is made, for every group."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


def run(steps, *args, **kwargs):
    optimizer = make_optimizer()
    return [rate for (rate,) in rates_of(optimizer, WarmupPolynomialLR(optimizer, *args, **kwargs), steps)]


def equation_5(t, base, warmup, maximum, power):
    return t * base / warmup if t <= warmup else base * (1 - (t - warmup) / maximum) ** power


@pytest.mark.parametrize("power", [1.0, 0.9])
@pytest.mark.parametrize(("warmup", "maximum"), [(1, 20), (5, 20), (19, 20), (250, 1000)])
def test_is_equation_5_of_samed(warmup, maximum, power):
    optimizer = make_optimizer(0.005, 1e-3)
    schedule = WarmupPolynomialLR(optimizer, max_steps=maximum, warmup_steps=warmup, power=power)
    for t, rates in enumerate(rates_of(optimizer, schedule, maximum), start=1):
        expected = [equation_5(t, base, warmup, maximum, power) for base in (0.005, 1e-3)]
        assert rates == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_papers():
    rates = run(260, 18_600)
    assert rates[249] == 1.0
    assert rates[259] == pytest.approx(1 - 10 / 18_600)


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_without_warmup_is_torchs_polynomial_decay(power):
    optimizer = make_optimizer()
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=power)
    expected = [rate for (rate,) in rates_of(optimizer, reference, 25)]
    assert run(25, 20, 0, power) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
@pytest.mark.parametrize(("warmup", "maximum"), [(0, 1), (1, 1), (0, 5), (3, 5), (2, 3)])
def test_no_step_of_the_run_is_wasted_and_the_rate_ends_at_zero(warmup, maximum, power):
    rates = run(3 * (warmup + maximum), maximum, warmup, power)
    assert all(0 < rate <= 1 for rate in rates[:maximum])
    assert 1.0 in rates[:maximum]
    assert all(isinstance(rate, float) and rate >= 0 for rate in rates)
    assert rates[max(1, warmup) + maximum - 1 :] == [0.0] * len(rates[max(1, warmup) + maximum - 1 :])


@pytest.mark.parametrize(("warmup", "maximum", "cut"), [(250, 100, 50), (100, 100, 50), (2, 1, 1), (5, 3, 1)])
def test_warmup_longer_than_the_run_is_cut_to_half_of_it(warmup, maximum, cut):
    with pytest.warns(UserWarning, match=f"{warmup} steps does not fit into {maximum} steps: it is cut to {cut}"):
        rates = run(maximum, maximum, warmup)
    assert rates == run(maximum, maximum, cut)
    assert rates[cut - 1] == 1.0


def test_fitting_warmup_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(3, 100, 99) == pytest.approx([1 / 99, 2 / 99, 3 / 99])
        assert run(1, 1, 1) == [1.0]


@pytest.mark.parametrize(
    "arguments",
    [{"max_steps": 0}, {"max_steps": 10, "warmup_steps": -1}, {"max_steps": 10, "power": 0.0}],
    ids=["max_steps", "warmup_steps", "power"],
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        WarmupPolynomialLR(make_optimizer(), **arguments)


@pytest.mark.parametrize("saved_at", [1, 4, 5, 6, 11])
def test_resume_is_exact(saved_at):
    optimizer = make_optimizer(0.005, 1e-3)
    schedule = WarmupPolynomialLR(optimizer, 15, 5, 0.9)
    rates_of(optimizer, schedule, saved_at)
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], buffer)
    expected = rates_of(optimizer, schedule, 20 - saved_at)

    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    resumed = make_optimizer(0.005, 1e-3)
    resumed_schedule = WarmupPolynomialLR(resumed, 15, 5, 0.9)
    resumed.load_state_dict(states[0])
    resumed_schedule.load_state_dict(states[1])
    assert rates_of(resumed, resumed_schedule, 20 - saved_at) == expected


def test_a_resumed_run_may_be_prolonged():
    optimizer = make_optimizer()
    schedule = WarmupPolynomialLR(optimizer, 15, 5)
    rates_of(optimizer, schedule, 10)
    state = schedule.state_dict()
    longer = make_optimizer()
    prolonged = WarmupPolynomialLR(longer, 30, 5)
    prolonged.load_state_dict(state)
    prolonged.step()  # torch's schedulers set a rate when they are stepped
    assert longer.param_groups[0]["lr"] == pytest.approx(equation_5(12, 1.0, 5, 30, 1.0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"])
def test_can_be_copied(copied):
    optimizer = make_optimizer()
    schedule = WarmupPolynomialLR(optimizer, 15, 5)
    rates_of(optimizer, schedule, 3)
    other = copied(schedule)
    assert rates_of(other.optimizer, other, 5) == rates_of(optimizer, schedule, 5)
