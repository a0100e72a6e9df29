"""Two gloo processes on a CPU against one process with the joined batch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from medsaga.networks.encoders import build_encoder
from medsaga.optimizers import GaLoreAdamW, data_parallel, load_parts, sam_param_groups, save_parts, shard

from .. import forks

STEPS = 6


class Net(nn.Module):
    """SAM's own image encoder, in float64, so that only a mistake can be larger than rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = build_encoder("vit_test", 32)
        self.head = nn.Conv2d(256, 3, 1)

    def forward(self, image):
        return self.head(self.image_encoder(image.expand(-1, 3, -1, -1)))


def make(in_backward):
    torch.manual_seed(0)
    network = Net().double()
    groups = sam_param_groups(network, rank=8, encoder_lr=1e-4, lr=1e-4, update_gap=3)
    return network, GaLoreAdamW(groups, update_in_backward=in_backward, max_norm=1.0)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    image = torch.rand(4, 1, 32, 32, generator=generator, dtype=torch.float64)
    return image, (image[:, 0, ::16, ::16] * 3).long()


def train(network, optimizer, steps, part=slice(None)):
    for step in steps:
        image, label = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(image[part]), label[part]).backward()
        optimizer.step()


def in_ranks(processes, function, folder):
    """Call a function of this file with a folder in several processes of one group."""
    code = (
        "import sys, torch, torch.distributed as dist\n"
        f"from {__name__} import {function.__name__}\n"
        "torch.set_num_threads(1)\n"
        "dist.init_process_group('gloo')\n"
        f"{function.__name__}(dist.get_rank(), sys.argv[1])\n"
        "dist.destroy_process_group()"
    )
    logs = [folder / f"log{rank}" for rank in range(processes)]
    started = forks.ranks([sys.executable, "-c", code, str(folder)], logs, Path(__file__).parents[2])
    codes = [process.wait() for process in started]
    assert codes == [0] * processes, logs[0].read_text()


CASES = {"ddp": (False, False), "in_backward": (True, False), "resumed": (True, True)}


def child(process, folder):
    part = slice(2 * process, 2 * process + 2)
    for case, (in_backward, resume) in CASES.items():
        network, optimizer = make(in_backward)
        with torch.no_grad():  # what the other process starts from must not matter
            for parameter in network.parameters():
                parameter.add_(process)
        train(data_parallel(network, optimizer, "cpu"), optimizer, range(4 if resume else STEPS), part)
        if resume:
            file = f"{folder}/last{process}.pt"
            torch.save((network.state_dict(), optimizer.state_dict()), file)
            network, optimizer = make(in_backward)
            wrapped = data_parallel(network, optimizer, "cpu")
            for thing, state in zip((network, optimizer), torch.load(file, weights_only=True)):
                thing.load_state_dict(state)
            train(wrapped, optimizer, range(4, STEPS), part)
        torch.save((network.state_dict(), optimizer.state_dict()["state"]), f"{folder}/{case}{process}.pt")


def test_two_processes_reach_the_weights_of_one(tmp_path):
    in_ranks(2, child, tmp_path)
    network, optimizer = make(False)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, optimizer, range(STEPS))
    alone = network.state_dict()
    assert max((alone[name] - start[name]).abs().max() for name in start) > 3e-4  # far above the tolerance below
    for case in CASES:
        (first, first_state), (second, second_state) = (
            torch.load(tmp_path / f"{case}{process}.pt", weights_only=True) for process in (0, 1)
        )
        for index, state in first_state.items():
            for key, value in state.items():
                assert torch.equal(value, second_state[index][key]), (case, index, key)
        for name, value in alone.items():
            assert torch.equal(first[name], second[name]), (case, name)
            assert (first[name] - value).abs().max() <= 1e-5, (case, name)


def whole_state(network):
    return {name: value.full_tensor() for name, value in network.state_dict().items()}


def make_sharded(in_backward):
    torch.manual_seed(0)
    network = shard(Net().double(), "cpu")
    groups = sam_param_groups(network, rank=8, encoder_lr=1e-4, lr=1e-4, update_gap=3)
    return network, GaLoreAdamW(groups, update_in_backward=in_backward, max_norm=1.0)


def sharded_child(process, folder):
    """Two processes train and save in the middle; three, of which each has the whole batch, go on from there."""
    processes = dist.get_world_size()
    for in_backward in (False, True):
        network, optimizer = make_sharded(in_backward)
        if processes == 2:
            part = slice(2 * process, 2 * process + 2)
            train(network, optimizer, range(4), part)
            for _ in range(2):  # the second time in the place of the first
                save_parts(f"{folder}/{in_backward}", network, optimizer)
            train(network, optimizer, range(4, STEPS), part)
        else:
            load_parts(f"{folder}/{in_backward}", network, optimizer)
            train(network, optimizer, range(4, STEPS))
        held = sum(p.to_local().numel() for p in network.parameters())
        weights = whole_state(network)
        if process == 0:
            torch.save((weights, held), f"{folder}/{in_backward}{processes}.pt")


def test_sharded_processes_reach_the_weights_of_one_and_others_go_on_from_their_files(tmp_path):
    for processes in (2, 3):
        in_ranks(processes, sharded_child, tmp_path)
    network, optimizer = make(False)
    train(network, optimizer, range(STEPS))
    parameters = sum(p.numel() for p in network.parameters())
    for in_backward in (False, True):
        for processes in (2, 3):
            weights, held = torch.load(tmp_path / f"{in_backward}{processes}.pt", weights_only=True)
            assert held < parameters / processes * 1.05
            for name, value in network.state_dict().items():
                assert (weights[name] - value).abs().max() <= 1e-5, (in_backward, processes, name)
        assert sorted(path.suffix for path in (tmp_path / str(in_backward)).iterdir()) == [".safetensors"] * 2
    assert not [*tmp_path.glob("*.old"), *tmp_path.glob("*.part")]


def test_full_gradients_of_taken_parameters_stay_out_of_ddp(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network, optimizer = make(True)
        wrapped = data_parallel(network, optimizer, "cpu")
        taken = {name for name, p in network.named_parameters() if any(p is q for q in optimizer.taken_in_backward)}
        assert any("qkv.weight" in name for name in taken)
        assert wrapped.parameters_to_ignore == taken
        plain = data_parallel(make(False)[0], torch.optim.AdamW(network.parameters()), "cpu")
        assert not plain.parameters_to_ignore
    finally:
        dist.destroy_process_group()
