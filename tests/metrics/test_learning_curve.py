"""A learning curve, continued."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from medsaga.metrics import forecast


def law(n, asymptote, factor, exponent):
    return asymptote - factor * np.asarray(n, float) ** -exponent


@pytest.mark.parametrize("asymptote, factor, exponent", [(0.9, 0.5, 0.5), (0.95, 1.2, 1.0), (0.85, 0.4, 0.3)])
def test_exact_points_give_the_power_law_that_a_fit_finds(asymptote, factor, exponent):
    counts = [10, 20, 40, 80]
    scores = law(counts, asymptote, factor, exponent)
    fitted, _ = curve_fit(law, counts, scores, p0=(0.8, 0.5, 0.6), maxfev=10000)
    found = forecast(counts, scores, 160, errors=0.001)
    assert found.expected == pytest.approx(law(160, *fitted), abs=0.004)
    assert found.low <= law(160, asymptote, factor, exponent) <= found.high


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """80 % of curves drawn at random, measured with the errors that are stated."""
    rng = np.random.default_rng(0)
    counts, inside = np.array([1, 2, 4]), []
    for _ in range(120):
        asymptote, exponent = rng.uniform(0.7, 1), rng.uniform(0.1, 1.5)
        curve = asymptote, rng.uniform(0, asymptote - 0.3), exponent
        found = forecast(counts, law(counts, *curve) + rng.normal(0, 0.01, 3), 8)
        inside.append(found.low <= law(8, *curve) <= found.high)
    assert 0.68 <= np.mean(inside) <= 0.92


def test_fewer_points_and_larger_errors_widen_the_interval():
    def width(found):
        return found.high - found.low

    counts, scores = [10, 20, 40, 80], [0.6, 0.7, 0.76, 0.8]
    assert width(forecast(counts[2:], scores[2:], 160)) > width(forecast(counts, scores, 160))
    assert width(forecast(counts, scores, 160, 0.05)) > width(forecast(counts, scores, 160, 0.01))
    assert width(forecast(counts, scores, 640)) > width(forecast(counts, scores, 160))


@pytest.mark.parametrize("scores", [[0.8, 0.8], [0.82, 0.8], [0.0, 0.0], [1.0, 1.0]])
def test_curves_that_do_not_rise_stay_between_0_and_1(scores):
    found = forecast([10, 20], scores, 40)
    assert 0 <= found.low <= found.expected <= found.high <= 1


@pytest.mark.parametrize(
    "counts, at, errors, message",
    [
        ([10, 10], 20, 0.01, "two different counts"),
        ([10], 20, 0.01, "two different counts"),
        ([0, 10], 20, 0.01, "at least 1"),
        ([5, 10], 20, 0.0, "above 0"),
        ([5, 10], 0, 0.01, "at least 1"),
    ],
)
def test_what_makes_no_curve_is_refused(counts, at, errors, message):
    with pytest.raises(ValueError, match=message):
        forecast(counts, [0.5] * len(counts), at, errors)
