import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medsaga.handlers import MovingAverage


def run(average, network, weights):
    """A trainer whose step t sets all weights to ``weights[t - 1]``."""

    def step(engine, _):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(weights[engine.state.iteration - 1])

    engine = Engine(step)
    average.attach(engine)
    seen = []
    value = next(average.network.parameters()).flatten()
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(float(value[0])))
    engine.run(range(len(weights)))
    return seen


def test_it_moves_by_a_share_that_falls_to_the_momentum():
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, 7.0)
    weights = [1.0, 3.0, 2.0, 5.0, 4.0, 0.0]
    seen = run(MovingAverage(network, 0.6), network, weights)
    expected = 7.0
    for t, (value, weight) in enumerate(zip(seen, weights), start=1):
        share = {1: 9 / 11, 2: 9 / 12, 3: 9 / 13, 4: 9 / 14}.get(t, 0.6)
        expected = (1 - share) * expected + share * weight
        assert value == pytest.approx(expected, rel=1e-6)


def test_low_precision_loses_no_small_step():
    network = nn.Linear(1, 1).bfloat16()
    nn.init.constant_(network.weight, 1.0)
    nn.init.constant_(network.bias, 1.0)
    average = MovingAverage(network, 0.01)
    assert all(p.dtype == torch.float32 for p in average.network.parameters())
    seen = run(average, network, [1.0] * 2000 + [1.0078125] * 100)  # the next number of bfloat16
    assert seen[-1] == pytest.approx(1 + 0.0078125 * (1 - 0.99**100), abs=1e-6)


def test_buffers_are_the_networks_and_the_average_is_not_trained():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    average = MovingAverage(network, 0.5)
    network(torch.randn(8, 2))
    run(average, network, [1.0])
    assert torch.equal(average.network[1].running_mean, network[1].running_mean)
    assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())


def test_what_is_not_trained_is_the_networks_own():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    average = MovingAverage(network, 0.3)
    run(average, network[1], [2.0] * 50)
    assert average.network[0].weight.data_ptr() == network[0].weight.data_ptr()
    assert torch.equal(average.network[0].weight, before)
    assert average.network[1].weight.data_ptr() != network[1].weight.data_ptr()


def test_it_starts_from_weights_that_are_loaded_before_the_first_step():
    network = nn.Linear(2, 2)
    average = MovingAverage(network, 0.5)
    nn.init.constant_(network.weight, 4.0)
    nn.init.constant_(network.bias, 4.0)
    assert run(average, network, [4.0]) == [4.0]


def test_none_keeps_no_average():
    network = nn.Linear(2, 2)
    average = MovingAverage(network)
    assert average.network is network
    assert run(average, network, [1.0, 3.0]) == [1.0, 3.0]


@pytest.mark.parametrize("momentum", [0, 1, -0.1, 1.5, float("nan")])
def test_another_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match="ema_momentum is .* above 0 and below 1"):
        MovingAverage(nn.Linear(2, 2), momentum)
