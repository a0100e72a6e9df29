"""How to train on the labels there are, be it one or a hundred."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TrainingSettings", "checksum", "hold_back", "training_settings"]

# (labels at least, optimizer steps, warmup steps, labels held back, share of the rates when going on). A model that has
# learnt from many labels loses at the bundle's full rates more than such a training regains: going on from 12 labels to
# 20, Dice on 20 other hippocampus patients went from 0.831 to 0.802, at 0.3 of the rates to 0.839 (one run each, with
# the encoder's full rate at 0.0005).
_TABLE = (
    (1, 80, 10, 0, 1.0),
    (2, 100, 10, 0, 1.0),
    (3, 120, 15, 0, 1.0),
    (6, 160, 20, 1, 1.0),
    (10, 200, 20, 2, 1.0),
    (20, 300, 30, 4, 0.3),
    (50, 600, 50, 8, 0.3),
)
# More steps for a class head that starts fresh: it may stay near the classes' frequencies for a hundred steps
# before it learns. Of seven first trainings on three labels, of five different sets, one ended there after 145 steps,
# with a Dice of 0.242; after 290 it had 0.733 (encoder's rate 0.0005).
_FRESH_HEAD = 150
# Least rate of LiteMedSAM's encoder then. After 270 steps on six hippocampus volumes 20 others had 0.837 at this
# rate and 0.821 at the bundle's 0.0002; after 1,000 steps both do the same (one run each).
_SHORT_ENCODER_RATE = 0.0005


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training.

    Args:
        steps: optimizer steps, after which training ends at the end of an epoch.
        warmup: number of these steps in which the rate rises.
        held_back: labels kept out of training to score the result with.
        rate: share of the bundle's learning rates.
        encoder_rate: the least for LiteMedSAM's encoder.
    """

    steps: int
    warmup: int
    held_back: int
    rate: float
    encoder_rate: float = 0

    def epochs(self, steps_per_epoch: int) -> int:
        """Whole epochs that make up the steps."""
        return max(1, math.ceil(self.steps / steps_per_epoch))

    def rates(self, config: Mapping[str, Any], own_method: bool) -> dict[str, float]:
        """The learning rates to override.

        Args:
            config: of the training.
            own_method: it is the bundle's own, and not an overlay's, which may have rates of its own.
        """
        # a rate that refers to the other one follows it
        numbers = {key: config[key] for key in ("lr", "encoder_lr") if not isinstance(config[key], str)}
        rates = {key: self.rate * rate for key, rate in numbers.items()}
        if own_method and rates.get("encoder_lr") and config["network_def"]["encoder"] == "vit_t":
            rates["encoder_lr"] = max(rates["encoder_lr"], self.encoder_rate)
        return rates


def training_settings(labels: int, replaces: bool, goes_on: bool) -> TrainingSettings:
    """Settings for a number of labels.

    With few labels, each one is worth more in training than in scoring, and a first model replaces nothing: all labels
    are used for training. A model that would replace another has to be scored, so with two labels or more at least one
    is held back.

    Args:
        labels: number of labelled cases.
        replaces: there is a trained model in use.
        goes_on: training starts from its weights.

    Raises:
        ValueError: no label.
    """
    if labels < 1:
        raise ValueError("there is no usable label yet: submit at least one, then train.")
    _, steps, warmup, held_back, rate = [row for row in _TABLE if row[0] <= labels][-1]
    if replaces and labels > 1:
        held_back = max(1, held_back)
    if goes_on:
        return TrainingSettings(steps, warmup, held_back, rate)
    return TrainingSettings(steps + _FRESH_HEAD, warmup, held_back, 1.0, _SHORT_ENCODER_RATE)


def hold_back(cases: Sequence[str], number: int, learnt: Sequence[str], held_before: Sequence[str]) -> list[str]:
    """Choose the cases to score with, whose labels neither the new nor the served model has learnt from.

    What was held back stays so; new ones are taken from the labels that came since. One that the served model has
    learnt from is never taken: its score would say nothing. The choice depends on the arguments only, not on their
    order.

    Args:
        cases: names of all labelled cases.
        number: how many are wanted; at most all but one are taken, and fewer where the others are learnt.
        learnt: cases that the served model has learnt from.
        held_before: cases held back from it.

    Returns:
        Names, sorted.
    """
    number = min(number, len(cases) - 1)
    held = sorted(c for c in cases if c in held_before and c not in learnt)
    fresh = sorted((c for c in cases if c not in learnt and c not in held), key=checksum)
    return sorted([*held, *fresh][:number])


def checksum(name: str) -> str:
    """To sort names by: names in order often go by scanner or date."""
    return hashlib.sha256(name.encode()).hexdigest()
