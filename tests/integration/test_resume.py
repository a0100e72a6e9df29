"""A run that is killed and started again ends with the weights of one that was not."""

import os
import signal

import pytest
import torch

from .. import forks
from ..waiting import until
from .bundles import SMALL, command, paths, start

RUN = {
    **SMALL,
    "train#trainer#max_epochs": 4,
    "val_interval": 2,
    "batch_size": 4,
    "test_patients": 2,
    "val_patients": 2,
    "train_patients": 4,
    "num_slices": 12,
    "warmup_steps": 4,
    "update_gap": 5,
    "ema_momentum": 0.1,
    "device": "$torch.device('cpu')",
}


def finish(process: forks.Fork, log) -> None:
    assert process.wait(timeout=600) == 0, log.read_text()[-3000:]


def test_killed_and_resumed_run_has_the_same_weights(phantoms, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    first = start(
        command("training", "hippocampus", "train", **RUN, **paths("hippocampus", phantoms, whole)), whole / "log"
    )
    finish(first, whole / "log")

    words = command("training", "hippocampus", "train", **RUN, **paths("hippocampus", phantoms, killed))
    process = start(words, killed / "log")
    last = killed / "output" / "last.pt"
    until(last.is_file, 600, process, lambda: (killed / "log").read_text()[-3000:])
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = torch.load(last, weights_only=True)["progress"]["epoch"]
    if reached >= 4:
        pytest.fail("the run had ended before it was killed; give it more epochs")

    finish(start([*words, "--resume", "True"], killed / "log"), killed / "log")
    log = (killed / "log").read_text()
    assert "Resumed after epoch" in log, log[-3000:]
    a, b = (torch.load(folder / "output" / "last.pt", weights_only=True) for folder in (whole, killed))
    assert a["progress"] == b["progress"] == {"epoch": 4, "iteration": 12}
    assert a["selection"] == b["selection"]
    for part in ("network", "average"):
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), key
    for index, state in a["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][index][key]), (index, key)
    for key, value in torch.load(whole / "model.pt", weights_only=True).items():
        assert torch.equal(value, torch.load(killed / "model.pt", weights_only=True)[key]), key
