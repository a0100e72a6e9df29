"""The rate falls after validations without a better one, and a resumed run's as an unbroken one's."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from medsaga.handlers import TrainingState
from medsaga.lr_schedulers import ValidationPlateauLR


class Scripted(Metric):
    """The validation's key metric, given for each epoch of the trainer."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        pass

    def completed(self, engine, name):
        engine.state.metrics[name] = torch.tensor(self.values[engine.state.epoch - 1])


def evaluator(values, network):
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1), "label": torch.ones(1, 1)}],
        network=network,
        key_val_metric={"val_mean_dice": Scripted(values)},
    )


def run(values, **settings):
    """Schedule, and the rate after each validation."""
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    validation = evaluator(values, network)
    schedule = ValidationPlateauLR(optimizer, validation, **settings)
    rates = []
    for epoch in range(1, len(values) + 1):
        validation.run(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return schedule, rates


def test_falls_when_patience_is_at_its_end():
    values = [0.5, 0.6, 0.6, 0.59, 0.6, 0.7, 0.69]
    assert run(values, factor=0.5, patience=1)[1] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert run(values, factor=0.5, patience=0)[1] == [1, 1, 0.5, 0.25, 0.125, 0.125, 0.0625]


def test_a_metric_of_nothing_is_no_bad_validation():
    nan = float("nan")
    assert run([0.5, nan, nan, nan, 0.4, 0.3], factor=0.5, patience=1)[1] == [1, 1, 1, 1, 1, 0.5]


def test_is_torchs_schedule_of_the_same_metric():
    values = torch.rand(25, generator=torch.Generator().manual_seed(0)).tolist()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2)
    expected = []
    for value in values:
        reference.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    found = run(values, factor=0.5, patience=2)[1]
    assert found == expected and len(set(found)) > 3


def test_its_state_is_what_it_has_learnt_and_loads_without_pickles(tmp_path):
    schedule, _ = run([0.5, 0.4], factor=0.5, patience=3)
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    other, _ = run([], factor=0.1, patience=7)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (other.best, other.num_bad_epochs, other.last_epoch) == (0.5, 1, 2)
    assert (other.factor, other.patience) == (0.1, 7), "settings are those of the config"


def train(folder, epochs, resume=False):
    """A trainer with the handlers of a bundle; rates after each epoch, and the weights."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    validation = evaluator([0.5, 0.4, 0.4, 0.4, 0.6, 0.1], network)
    schedule = ValidationPlateauLR(optimizer, validation, factor=0.5, patience=1)
    state = TrainingState(folder, folder / "model.pt", network, optimizer, schedule, validation, resume)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": torch.full((1, 1), float(i)), "label": torch.ones(1, 1)} for i in range(3)],
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[ValidationHandler(1, validation), state],
    )
    rates = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    return rates, network.state_dict()


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5])
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path, stopped_after):
    expected, weights = train(tmp_path / "whole", 6)
    first, _ = train(tmp_path / "parts", stopped_after)
    second, resumed = train(tmp_path / "parts", 6, resume=True)
    assert first + second == expected == [0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
