"""What more labels would bring: a learning curve, continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Forecast", "forecast", "seed_error"]

_ASYMPTOTES = np.linspace(0, 1, 101)
_EXPONENTS = np.linspace(0.1, 1.5, 29)
_STARTS = np.linspace(-3, 3, 31)  # score at the smallest count, in errors from what was measured
_QUANTILES = (0.1, 0.5, 0.9)
_WORTH = 0.01  # Dice that more labels should bring


def seed_error(score: float) -> float:
    """Standard deviation of a Dice over seeds: each seed draws other labels, and the same cases are scored.

    It is estimated as a tenth of what is missing to 1. On three data sets, with 3 to 80 labelled slices, it was between
    0.01 and 0.17 of what is missing, with a median of 0.07 (``docs/slice_choice_*.md``, 17 standard deviations of three
    seeds each).
    """
    return max(0.005, 0.1 * (1 - score))


@dataclass(frozen=True)
class Forecast:
    """An expected score.

    Args:
        count: of labels.
        low: lower end of the 80 % interval.
        expected: median.
        high: upper end of the interval.
    """

    count: int
    low: float
    expected: float
    high: float

    def pays(self, score: float) -> bool:
        """Whether so many labels are expected to bring a gain of 0.01 or more over a score."""
        return self.expected - score >= _WORTH

    def __str__(self) -> str:
        return f"{self.expected:.3f} (80 % interval {self.low:.3f} to {self.high:.3f})"


def forecast(
    counts: Sequence[int], scores: Sequence[float], at: int, errors: float | Sequence[float] | None = None
) -> Forecast:
    """Continue a learning curve by a power law, ``score(n) = a - b n^(-c)`` with ``a <= 1``, ``b >= 0``.

    Two or three points do not determine three numbers, so none is fitted: all asymptotes a from 0 to 1 and exponents c
    from 0.1 to 1.5 are weighed by how well they explain the scores (Gaussian errors), and the interval covers what they
    predict. It is about these cases: patients of another kind may be worse.

    Args:
        counts: labels that were learnt from, slices or patients.
        scores: Dice of each.
        at: count to forecast for.
        errors: standard error of the scores; :func:`seed_error` unless given.

    Raises:
        ValueError: fewer than two different counts, counts below 1, or errors that are not above 0.

    Source:
        Power laws of learning: Hestness et al. (arXiv 1712.00409); for segmentation with intervals, Figueroa et al.,
        BMC Medical Informatics 12:8 (2012).
    """
    n, score = np.asarray(counts, float), np.asarray(scores, float)
    errors = [seed_error(s) for s in scores] if errors is None else errors
    error = np.broadcast_to(np.asarray(errors, float), n.shape)
    if len(np.unique(n)) < 2:
        raise ValueError(f"A learning curve needs scores at two different counts, got counts {list(counts)}.")
    if n.min() < 1 or at < 1 or not (error > 0).all():
        raise ValueError(f"Counts must be at least 1 and errors above 0, got {list(counts)}, {at} and {errors}.")
    first = n.argmin()
    starts = np.clip(score[first] + _STARTS * error[first], 0, 1)
    start, asymptote, exponent = np.meshgrid(starts, _ASYMPTOTES, _EXPONENTS, indexing="ij")

    def curve(count: float) -> np.ndarray:
        return asymptote - (asymptote - start) * (count / n[first]) ** -exponent

    log_weight = sum(-(((curve(c) - s) / e) ** 2) / 2 for c, s, e in zip(n, score, error))
    weight = np.where(asymptote >= start, np.exp(log_weight - log_weight[asymptote >= start].max()), 0)
    value, weight = curve(at).ravel(), weight.ravel()
    order = value.argsort()
    below = weight[order].cumsum() / weight.sum()
    low, expected, high = (float(value[order][np.searchsorted(below, q)]) for q in _QUANTILES)
    return Forecast(at, low, expected, high)
