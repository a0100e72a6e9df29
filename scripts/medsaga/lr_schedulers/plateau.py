"""A learning rate that falls when the validation gets no better."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["ValidationPlateauLR"]

# what changes during training, without the settings
_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")


class ValidationPlateauLR(ReduceLROnPlateau):
    """torch's ``ReduceLROnPlateau``, which steps itself after each validation by the key metric, larger being better.

    torch's own schedule takes the metric as an argument of ``step``. MONAI's ``LrScheduleHandler`` could pass it only
    from the trainer. There the metric is missing before the first validation and old between two validations. The
    handler also runs after :class:`~medsaga.handlers.TrainingState` has saved the epoch, so that a resumed run would
    miss a step. So this schedule listens to the evaluator, and the handler's calls, which have no metric, change
    nothing. In a run of several processes each steps by the same metric. Without validation the rate stays as it is.

    Args:
        optimizer: the optimizer.
        evaluator: MONAI evaluator that validates.
        factor: the rates are multiplied by it.
        patience: number of validations in a row that may be no better; the next one lowers the rates.

    Raises:
        ValueError: ``factor`` is not below 1.

    The state dict holds plain Python values. The schedule's own settings are not among them: on resume those given here
    apply.
    """

    def __init__(self, optimizer: Optimizer, evaluator: Engine, factor: float = 0.1, patience: int = 10) -> None:
        super().__init__(optimizer, mode="max", factor=factor, patience=patience)
        evaluator.add_event_handler(Events.COMPLETED, self._validated)

    def step(self, metrics: float | None = None) -> None:
        """
        Args:
            metrics: of a validation; None, as after each batch by MONAI's handler, changes nothing.
        """
        if metrics is not None:
            super().step(metrics)

    def _validated(self, evaluator: Engine) -> None:
        metric = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if not math.isnan(metric):  # NaN: nothing was scored, so it does not count as a validation
            self.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """What the schedule has learnt so far."""
        return {key: getattr(self, key) for key in _STATE}
