"""Checkpoints of a training run: the best and the last state, whole or not at all, and the way back to them."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils import set_determinism
from torch import nn

from medsaga.files import replacing, write_json
from medsaga.networks import trained_state
from medsaga.records import with_record

from .finite import check_loss, check_weights
from .learning_curve import add_to_curve
from .moving_average import MovingAverage
from .resuming import check_record, check_settings, plain

__all__ = ["TrainingState"]


class TrainingState:
    """Ignite handler of a MONAI trainer that saves, selects, stops and resumes.

    At the end of an epoch it writes ``state_dir/last.pt`` with network, optimiser, schedule, loss scaler and counters;
    after a validation better than all before also ``state_dir/best.pt`` (the same content) and ``model_path`` (the
    network alone, what is served). Without validation ``model_path`` follows ``last.pt``. It replaces MONAI's
    ``CheckpointSaver`` and ``EarlyStopHandler``: these remove the old file before the new one is written, and when a
    run is resumed they forget the best score and the used patience.

    Every file is written under a temporary name and renamed, so a run killed at any moment leaves whole files. With
    ``resume`` it goes on after the last epoch that was written, and ends with the weights of a run that was never
    killed: sampler and augmentation are functions of seed and epoch (:class:`~medsaga.data.EpochSampler`), and global
    random states are seeded here as each epoch starts.

    The record of the training data is written to ``state_dir/split.json`` when the run starts, and into each of the
    files. A run can only be resumed with the settings, patients and slices that it was started with. A loss or a weight
    that is NaN or infinite ends it with an error, and is never saved.

    List it after the ``ValidationHandler``, so that an epoch's validation comes first.

    Args:
        state_dir: folder of ``last.pt`` and ``best.pt``.
        model_path: file of the weights to serve.
        network: saved without the wrapper of ``DistributedDataParallel``.
        optimizer: with a state dict of tensors and numbers.
        lr_scheduler: the same.
        evaluator: MONAI evaluator whose key metric, larger is better, selects the best epoch; None without validation.
            If the metric is NaN, the epoch counts as one without validation.
        resume: start from ``state_dir/last.pt`` where it exists. The texts "true" and "false", as a command line gives
            them, are accepted, too.
        patience: stop after this many validations in a row without a better one; None never stops early.
        seed: of the global random states, with the epoch.
        trained_only: leave out of ``model_path`` all weights that are unchanged from the published weights that the
            network started from (:func:`~medsaga.networks.trained_state`); texts as for ``resume``. A network that
            started from other weights, such as those of an earlier training, is saved as a whole.
        record: what is learnt from, see :func:`~medsaga.data.training_record`; None writes none.
        settings: values by name that decide the result; None records and compares none.
        average: of the network's weights; this handler updates it. ``model_path`` gets the average's network, and the
            state has both networks.
        save_seconds: time after which an epoch is written again; 0 writes each epoch. Otherwise a training with epochs
            of one step would spend more time on files than on learning. The first epoch, the last and each better
            validation are always written.

    Raises:
        ValueError: ``resume`` or ``trained_only`` is neither true nor false; as the run starts, when the run to resume
            has other settings, patients or slices.
        RuntimeError: as the run starts, when the file to resume from is damaged or of another network or optimiser.
        FloatingPointError: in the run, when loss or weights are not finite.
    """

    def __init__(
        self,
        state_dir: str | Path,
        model_path: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Engine | None = None,
        resume: bool | str = False,
        patience: int | None = None,
        seed: int = 0,
        trained_only: bool | str = False,
        record: dict[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        average: MovingAverage | None = None,
        save_seconds: float = 0,
    ) -> None:
        self.last, self.best = Path(state_dir) / "last.pt", Path(state_dir) / "best.pt"
        self.model_path = Path(model_path)
        self.network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        self.average = average if average is not None and average.momentum is not None else None
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.resume = _is_true("resume", resume)
        self.patience = patience
        self.save_seconds = save_seconds
        self.saved_epoch, self.saved_at = 0, -math.inf
        self.seed = seed
        self.record = record
        self.settings = None if settings is None else plain(settings)
        self.selection = {"best_metric": float("-inf"), "best_epoch": 0, "validated_epoch": 0, "without_better": 0}
        self.logger = logging.getLogger(__name__)
        self.trained_only = _is_true("trained_only", trained_only)
        if self.trained_only and getattr(self.network, "base", None) is None:
            self.logger.warning(
                f"There are no published weights to leave out: {self.model_path} will hold the whole network."
            )
            self.trained_only = False

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.STARTED, self.write_split)
        engine.add_event_handler(Events.EPOCH_STARTED, self.seed_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: check_loss(engine, self._kept()))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.report)
        if self.average is not None:
            self.average.attach(engine)

    def seed_epoch(self, engine: Engine) -> None:
        """Seed Python, NumPy and torch with the epoch: what is drawn from them does not depend on earlier epochs."""
        set_determinism(self.seed + engine.state.epoch, use_deterministic_algorithms=None)

    def write_split(self, engine: Engine) -> None:
        """Write the record of the training data, on the first process only."""
        if self.record is not None and _is_first_process():
            write_json(self.last.parent / "split.json", self.record)

    def save(self, engine: Engine) -> None:
        """Select the best epoch; stop if patience is used up; write due files, on the first process only."""
        check_weights(engine, self.network.state_dict(), self._kept())
        better = self._select(engine)
        self._stop_without_better(engine)
        if not self._is_due(engine, better):
            return
        if _is_first_process():
            state = self._state(engine)
            if better:
                served = self.network if self.average is None else self.average.network
                whole = state["network" if self.average is None else "average"]
                weights = trained_state(served) if self.trained_only else whole
                _write(with_record(weights, self.record), self.model_path)
                _write(state, self.best)
            _write(state, self.last)
        self.saved_epoch, self.saved_at = engine.state.epoch, time.monotonic()

    def _is_due(self, engine: Engine, better: bool) -> bool:
        epoch = engine.state.epoch
        ends = epoch == engine.state.max_epochs or engine.should_terminate
        validated = better and self.selection["validated_epoch"] == epoch
        return ends or validated or time.monotonic() >= self.saved_at + self.save_seconds

    def _stop_without_better(self, engine: Engine) -> None:
        if self.patience is not None and self.selection["without_better"] >= self.patience:
            self.logger.info(
                f"The score was not better in {self.patience} validation(s): stopping after epoch {engine.state.epoch}."
            )
            engine.terminate()

    def _select(self, engine: Engine) -> bool:
        epoch, validation = engine.state.epoch, self.evaluator.state if self.evaluator is not None else None
        name = validation.key_metric_name if validation is not None else None
        if validation is None or name not in validation.metrics:
            return self.selection["validated_epoch"] == 0
        # an evaluator's epoch is the trainer's epoch of its last run; metrics of an earlier epoch are not new
        if validation.epoch != epoch:
            return False
        metric = float(validation.metrics[name])
        if math.isnan(metric):
            self.logger.warning(
                f"Epoch {epoch}: {name} cannot be computed, because no validation label shows a class. So it is not "
                "used to choose the weights."
            )
            return self.selection["validated_epoch"] == 0
        better = metric > self.selection["best_metric"]
        self.selection["validated_epoch"] = epoch
        self.selection["without_better"] = 0 if better else self.selection["without_better"] + 1
        if better:
            self.selection.update(best_metric=metric, best_epoch=epoch)
            if (details := validation.metric_details.get(name)) is not None:
                self.selection["best_scores"] = details.tolist()
        return better

    def _state(self, engine: Engine) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            **({} if self.average is None else {"average": self.average.network.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": engine.scaler.state_dict() if engine.scaler is not None else {},
            "progress": {"epoch": engine.state.epoch, "iteration": engine.state.iteration},
            "selection": dict(self.selection),
            **({} if self.record is None else {"record": self.record}),
            **({} if self.settings is None else {"settings": self.settings}),
        }

    def _kept(self) -> str:
        if not self.saved_epoch:
            return "Nothing has been saved."
        return (
            f"{self.last} holds the state after epoch {self.saved_epoch}, and {self.model_path} the weights chosen "
            "until then."
        )

    def load(self, engine: Engine) -> None:
        """Resume the run that ``last.pt`` holds, if asked to."""
        if not self.resume:
            return
        if not self.last.is_file():
            self.logger.info(f"Nothing to resume: {self.last} does not exist. Starting from the beginning.")
            return
        try:
            state = torch.load(self.last, map_location="cpu", weights_only=True)
            before = {key: state.get(key) for key in ("settings", "record")}
        except Exception as err:
            raise self._cannot_resume(err) from err
        # checked first, because other settings may also be the reason why the rest does not fit
        if self.settings is not None:
            check_settings(before["settings"], self.settings, self.last)
        if self.record is not None:
            check_record(before["record"], self.record, self.last)
        try:
            self.network.load_state_dict(state["network"])
            if self.average is not None:  # in a run of an older version, which had no average, it starts now
                self.average.network.load_state_dict(state.get("average", state["network"]))
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            progress, selection, scaler = state["progress"], state["selection"], state["scaler"]
        except Exception as err:  # torch raises a dozen kinds for truncated files and foreign content
            raise self._cannot_resume(err) from err
        self.record = before["record"] or self.record  # also names what its first weights had learnt from
        if engine.scaler is not None and scaler:
            engine.scaler.load_state_dict(scaler)
        engine.state.epoch, engine.state.iteration = progress["epoch"], progress["iteration"]
        self.saved_epoch, self.selection = progress["epoch"], selection
        self.logger.info(f"Resumed after epoch {engine.state.epoch} of {engine.state.max_epochs} from {self.last}.")
        self._stop_without_better(engine)  # it may have stopped already

    def _cannot_resume(self, err: Exception) -> RuntimeError:
        return RuntimeError(
            f"Cannot resume from {self.last}: it is damaged, or it is of another network or optimiser than this "
            f"config's. Resume with the config it was made with, or start anew without resume. ({err})"
        )

    def report(self, engine: Engine) -> None:
        """Say which epoch's weights are served, and what more labels would bring."""
        if self.selection["validated_epoch"]:
            metric, epoch = self.selection["best_metric"], self.selection["best_epoch"]
            self.logger.info(f"{self.model_path}: weights of epoch {epoch}, validation {metric:.4f}.")
            scores = self.selection.get("best_scores")
            if scores and self.record and self.record["validation"] and _is_first_process():
                for line in add_to_curve(self.last.parent, self.record, self.settings or {}, scores):
                    self.logger.info(line)
        else:
            self.logger.info(f"{self.model_path}: weights of the last epoch, {engine.state.epoch}; no validation.")


def _is_true(name: str, value: bool | str) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return str(value).lower() == "true"


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _write(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # where this fails, its own message says why
    try:
        with replacing(path) as temporary:  # Ignite's DiskSaver would leave what a killed run has written
            torch.save(content, temporary)
    except (OSError, RuntimeError) as err:  # torch's writer reports a full disk as a RuntimeError
        free = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize / 2**20
        raise OSError(f"Cannot write {path} ({err}; {free:.0f} MB free). The former file is unchanged.") from err
