from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine

from medsaga.metrics import MeanDice, better

EMPTY = torch.zeros(1, 4, 4)
HALF = torch.cat([torch.ones(1, 2, 4), torch.zeros(1, 2, 4)], dim=1)
ALL = torch.ones(1, 4, 4)


def mean_dice(*pairs) -> float:
    engine = Engine(lambda _, pair: [{"pred": pair[0], "label": pair[1]}])
    metric = MeanDice(include_background=False, num_classes=3, output_transform=from_engine(["pred", "label"]))
    metric.attach(engine, "dice")
    engine.run(pairs)
    return engine.state.metrics["dice"]


def test_labels_that_show_nothing_have_no_dice():
    assert math.isnan(mean_dice((EMPTY, EMPTY), (HALF, EMPTY)))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(EMPTY, HALF)], 0),  # missed altogether: a zero that is one
        ([(HALF, ALL)], 2 / 3),
        ([(HALF, ALL), (HALF, EMPTY)], 2 / 3),
        ([(HALF, ALL), (EMPTY, 2 * ALL)], 1 / 3),
    ],
)
def test_others_have_the_dice_that_they_had(pairs, expected):
    assert mean_dice(*pairs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "best", "expected"),
    [(0.2, 0.1, True), (0.1, 0.1, False), (math.nan, 0.1, False), (0.1, math.nan, True), (math.nan, math.nan, False)],
)
def test_no_number_is_never_better(metric, best, expected):
    assert better(metric, best) is expected


def test_an_evaluator_forgets_a_best_of_nothing():
    labels = iter([EMPTY, HALF, ALL])
    metric = MeanDice(include_background=False, num_classes=2, output_transform=from_engine(["pred", "label"]))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[None],
        network=torch.nn.Identity(),
        iteration_update=lambda *_: [{"pred": HALF, "label": next(labels)}],
        key_val_metric={"dice": metric},
        metric_cmp_fn=better,
    )
    evaluator.run()
    assert math.isnan(evaluator.state.best_metric)
    evaluator.run()
    assert evaluator.state.best_metric == 1
    evaluator.run()
    assert evaluator.state.best_metric == 1
