"""What clients show while a model trains."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import psutil
from ignite.engine import Engine, Events
from monailabel.tasks.train.handler import prepare_stats

from medsaga.files import write_json

__all__ = ["StatsFile", "read_stats"]

# progress of a running training; for one that has ended early these entries mean nothing
_PROGRESS = ("epoch", "current_epoch", "current_iteration", "total_epochs", "current_time")


class StatsFile:
    """Ignite handler that leaves progress and scores in a file, which the server reads in another process.

    Its keys are MONAI Label's: ``epoch``, ``total_epochs``, ``current_time`` while training and ``total_time`` after,
    ``best_metric`` (mean Dice of the served model on held-back cases), ``train`` and ``eval`` with all metrics. While
    training, ``process`` names the process, by its id and start, so that a dead one's progress is not taken for a
    living one's.

    Args:
        path: the file, written under a temporary name and renamed.
        trainer: MONAI trainer.
        evaluator: MONAI evaluator.
        served_score: ``best_metric`` until there is another.
    """

    def __init__(self, path: Path, trainer: Engine, evaluator: Engine, served_score: float | None) -> None:
        self.path = Path(path)
        self.start = time.time()
        self.trainer = trainer
        self.evaluator = evaluator
        self.served_score = served_score
        trainer.add_event_handler(Events.STARTED, lambda: self.write())
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.write())

    def write(self, **more: Any) -> None:
        """Write the state of now.

        Args:
            more: further entries, and others in place of MONAI Label's.
        """
        stats = prepare_stats(self.start, self.trainer, self.evaluator)
        stats["best_metric"] = self.served_score or 0
        if "message" not in more:  # not the end yet, whatever the epoch: scoring follows
            stats.pop("total_time", None)
            stats["process"] = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        write_json(self.path, _numbers({**stats, **more}))


def _numbers(value: Any) -> Any:
    """The same with null for NaN, a metric of nothing: JSON has no NaN, and the server would fail to answer."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def read_stats(path: Path) -> dict[str, Any]:
    """The file's content, empty where there has been no training.

    If the process ended before the training was done, there is a ``message`` and no progress.
    """
    stats = json.loads(path.read_text()) if path.is_file() else {}
    process = stats.pop("process", None)
    done = not stats or "message" in stats
    if not done and not (process and _lives(process["pid"], process["started"])):
        stats = {key: value for key, value in stats.items() if key not in _PROGRESS}
        stats["message"] = "the last training ended before it was done"
    return stats


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # another process may have got the id; one that was killed keeps it until its parent has looked
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
