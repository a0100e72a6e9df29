"""The mean Dice by which epochs are compared; it is NaN where there is nothing to compare."""

from __future__ import annotations

import math

import monai.handlers

__all__ = ["MeanDice", "better"]


class MeanDice(monai.handlers.MeanDice):
    """MONAI's ``MeanDice``, but NaN where none of the labels shows a class.

    A class that a label does not show has no Dice. MONAI's mean over no value is 0, which reads as a model that finds
    nothing. Take :func:`better` as the evaluator's ``metric_cmp_fn``.
    """

    def compute(self) -> float:
        """
        Returns:
            mean over classes, then over cases, of those that have a value; NaN where none has.
        """
        result = super().compute()
        return math.nan if self.metric_fn.get_buffer().isnan().all() else result


def better(metric: float, best: float) -> bool:
    """Whether a metric is larger than the best before; NaN never is, and any number is better than NaN."""
    return metric > best or (math.isnan(best) and not math.isnan(metric))
