"""A training whose loss or weights are no numbers ends with an error, and leaves what was good."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from torch import nn

from medsaga.losses import LogitResolutionDiceCELoss

from .. import forks
from .test_training_state import Run


class Fails(nn.Module):
    """The bundles' loss, but another value at one step."""

    def __init__(self, step, value):
        super().__init__()
        self.loss, self.step, self.value, self.calls = LogitResolutionDiceCELoss(), step, value, 0

    def forward(self, pred, label):
        self.calls += 1
        loss = self.loss(pred, label)
        return loss * self.value if self.calls == self.step else loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["galore", "adamw"])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_epoch(tmp_path, value, optimizer):
    with pytest.raises(
        FloatingPointError, match=rf"Epoch 3, iteration 8: the loss is {value}. .*Try lower learning rates"
    ) as err:
        Run(tmp_path, metrics=[0.1, 0.2, 0.3, 0.4], loss=Fails(8, value), optimizer=optimizer)()
    assert f"{tmp_path / 'last.pt'} holds the state after epoch 2" in str(err.value)
    good = Run(tmp_path / "good", epochs=4, metrics=[0.1, 0.2, 0.3, 0.4], optimizer=optimizer)
    good.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda engine: engine.terminate())
    good()
    for name in ("last.pt", "best.pt", "models/model.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, tmp_path / "good"))
        for key, tensor in a.get("network", a).items():
            assert torch.equal(tensor, b.get("network", b)[key])
    # and it goes on from there
    assert Run(tmp_path, metrics=[0.1, 0.2, 0.3, 0.4], optimizer=optimizer, resume=True)().epoch_of("last.pt") == 4


def test_in_the_first_epoch_nothing_is_saved(tmp_path):
    with pytest.raises(FloatingPointError, match="Epoch 1, iteration 1: .*Nothing has been saved"):
        Run(tmp_path, loss=Fails(1, math.nan))()
    assert Run(tmp_path).files() == []


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    """The last step of an epoch may break them, and no loss is taken after it."""
    run = Run(tmp_path, epochs=3)

    def breaks(engine):
        if engine.state.iteration == 6:
            run.network[2].bias.data[1] = math.inf

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, breaks)
    with pytest.raises(FloatingPointError, match=r"Epoch 2: weights are not finite: 2\.bias\. They are not saved"):
        run()
    assert run.epoch_of("last.pt") == 1
    assert all(value.isfinite().all() for value in run.load("models/model.pt").values())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_step_that_a_scaler_skips_is_no_error(tmp_path):
    """Gradients overflow, the loss does not: GradScaler's own search for a scale."""
    run = Run(tmp_path, epochs=2, optimizer="adamw")
    run.trainer.amp, run.trainer.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**127)
    run()
    assert run.trainer.scaler.get_scale() < 2.0**127
    assert run.epoch_of("last.pt") == 2


PROCESS = """
import math, sys
from pathlib import Path
import torch.distributed as dist
from tests.handlers.test_finite import Fails
from tests.handlers.test_training_state import Run
dist.init_process_group("gloo")
run = Run(Path(sys.argv[1]), loss=Fails(3, math.nan if dist.get_rank() == 1 else 1.0))
run()
"""


def test_all_processes_stop_when_one_loss_is_no_number(tmp_path):
    words = [sys.executable, "-W", "ignore", "-c", PROCESS, str(tmp_path)]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    processes = forks.ranks(words, logs, Path(__file__).parents[2])
    assert [process.wait(300) for process in processes] == [1, 1]
    for error, loss in zip([log.read_text() for log in logs], (r"\d\.\d+", "nan")):
        assert re.search(rf"FloatingPointError: Epoch 2, iteration 3: the loss is {loss}", error), error
