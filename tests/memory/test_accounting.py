"""Against what can be counted by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from medsaga.memory import MemoryAccounting

WIDTH, DEPTH, BATCH = 32, 4, 100
MATRIX = (WIDTH * WIDTH + WIDTH) * 4  # bytes of a layer's float32 weight and bias
SIGNAL = BATCH * WIDTH * 4  # bytes of what goes from layer to layer


def chain() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))


def account(network: nn.Module, optimizer: torch.optim.Optimizer) -> MemoryAccounting:
    return MemoryAccounting(network, optimizer, torch.device("cpu"))


def test_a_chain_of_linear_layers_takes_what_it_must():
    network = chain()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with account(network, optimizer) as accounting:
        loss = network(torch.rand(BATCH, WIDTH)).sum()
        # the input and each layer's result but the last, which a sum does not keep; and the loss
        assert accounting.live == DEPTH * MATRIX + DEPTH * SIGNAL + 4
        loss.backward()
        del loss
        assert accounting.live == 2 * DEPTH * MATRIX
        optimizer.step()
        optimizer.zero_grad()
        assert accounting.live == DEPTH * MATRIX


def test_adamw_keeps_two_moments_and_a_counter_per_parameter():
    network = chain()
    optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
    with account(network, optimizer) as accounting:
        for _ in range(2):
            optimizer.zero_grad()
            network(torch.rand(1, WIDTH)).sum().backward()
            optimizer.step()
    assert accounting.steps == 2
    # in the step, where next to nothing else is left from one image
    assert accounting.peak_split["weights"] == DEPTH * MATRIX
    assert accounting.peak_split["gradients"] == DEPTH * MATRIX
    assert accounting.peak_split["optimizer state"] == 2 * DEPTH * MATRIX + 2 * DEPTH * 4
    # the square root of a weight's second moment
    assert 4 * WIDTH * WIDTH <= accounting.peak_split["temporaries"] <= 2.1 * 4 * WIDTH * WIDTH


def test_the_peak_is_split_without_a_rest():
    network = chain()
    optimizer = torch.optim.AdamW(network.parameters())
    with account(network, optimizer) as accounting:
        network(torch.rand(BATCH, WIDTH)).sum().backward()
        optimizer.step()
    assert sum(accounting.peak_split.values()) == accounting.peak


@pytest.mark.parametrize("recompute", [False, True])
def test_checkpointing_keeps_inputs_only_and_recomputes_activations(recompute):
    network = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(DEPTH)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with account(network, optimizer) as accounting:
        x = torch.rand(BATCH, WIDTH)
        for block in network:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        loss = x.sum()
        del x
        kept = accounting.live - DEPTH * MATRIX - 4
        # without: the input and two results per block but the last; with: each block's input
        assert kept == (DEPTH if recompute else 2 * DEPTH) * SIGNAL
        loss.backward()
    # in the last linear layer's backward: what is kept but for that layer's result, two gradients of signals, its own
    signals = DEPTH if recompute else 2 * DEPTH - 1
    assert accounting.peak_split["activations"] == pytest.approx(signals * SIGNAL, abs=8)
    assert accounting.peak == pytest.approx(DEPTH * MATRIX + (signals + 2) * SIGNAL + MATRIX, abs=200)


def test_a_view_is_not_counted_twice_and_a_freed_tensor_leaves():
    network = nn.Linear(1, 1)
    with account(network, torch.optim.SGD(network.parameters())) as accounting:
        before = accounting.live
        tensor = torch.zeros(1000)
        view = tensor.view(10, 100)[3:]
        assert accounting.live == before + 4000
        del tensor
        assert accounting.live == before + 4000
        del view
        assert accounting.live == before
        assert accounting.peak == before + 4000


def test_tensors_on_another_device_are_left_out():
    network = nn.Linear(8, 8, device="meta")
    with MemoryAccounting(network, torch.optim.SGD(network.parameters()), torch.device("meta")) as accounting:
        kept = torch.zeros(1000)
        assert accounting.live == (8 * 8 + 8) * 4
        del kept
