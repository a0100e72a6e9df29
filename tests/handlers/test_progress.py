from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn

from medsaga.handlers import Progress


def trainer(*handlers, loss=None, epochs=2):
    network = nn.Conv2d(1, 2, 1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(1, 1, 4, 4), "label": torch.ones(1, 4, 4).long()}] * 3,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=loss or nn.CrossEntropyLoss(),
        train_handlers=list(handlers),
    )


def test_one_bar_counts_the_iterations_of_all_epochs(capsys):
    trainer(Progress()).run()
    bars = capsys.readouterr().err
    last = bars.rstrip().split("\r")[-1]
    assert "6/6" in last
    assert "Epoch 2/2" in last
    assert "loss=" in last
    assert bars.count("\n") == 1


def test_evaluation_has_a_bar_without_a_loss(capsys):
    engine = Engine(lambda engine, batch: [{"pred": batch}])
    Progress().attach(engine)
    engine.run([1, 2, 3])
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert "3/3" in last
    assert "loss" not in last


def test_resumed_run_starts_where_it_was(capsys):
    class Resume:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, self.set)

        def set(self, engine):
            engine.state.epoch, engine.state.iteration = 1, 3

    trainer(Resume(), Progress()).run()
    bars = capsys.readouterr().err.rstrip().split("\r")
    assert "3/6" in bars[0] or "3/6" in bars[1]
    assert "6/6" in bars[-1]


def test_error_of_the_run_closes_the_bar_and_goes_on(capsys):
    def fail(*_):
        raise ZeroDivisionError("loss")

    progress = Progress()
    with pytest.raises(ZeroDivisionError, match="loss"):
        trainer(progress, loss=fail).run()
    assert progress.bar.disable  # what tqdm sets as it closes


def test_error_before_the_first_step_is_the_one_reported():
    class Fails:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, self.fail)

        def fail(self, engine):
            raise RuntimeError("cannot resume")

    with pytest.raises(RuntimeError, match="cannot resume"):
        trainer(Fails(), Progress()).run()
