"""How long to train, on which patients, and in which steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from medsaga.networks.checkpointing import CHECKPOINTING

from .choice import Choices
from .findings import Findings
from .machine import Machine

__all__ = ["choose_patients", "choose_steps"]

_MOST_TEST, _LARGE = (20, 50), 200  # most test patients below _LARGE patients and from _LARGE on
_MOST_VALIDATION = 10
_MOST_TRAINING = 100  # patients whose volumes are preprocessed and kept on disk
_MOST_SLICES = 1000
_RARE = 0.25  # share of slices with a class below which empty slices are left out
_EPOCHS = 200
_VALIDATIONS = 8

_LARGE_INPUT = 224  # pixels from which a step takes a CPU seconds


def choose_patients(found: Findings, choices: Choices) -> None:
    """Choose ``test_patients``, ``val_patients``, ``train_patients``, ``min_classes`` and ``num_slices``."""
    own = found.split
    patients = own.get("train", 1) if own else found.patients  # patients to draw from
    kept = " that the data set's own split names; a training keeps to it."
    if own.get("test"):
        test, text = own["test"], f"Those{kept}"
    elif patients < 2:
        test, text = (
            0,
            "There is one patient, who is used for training, so none is left for the test. A score needs a second one.",
        )
    else:
        most = _MOST_TEST[patients >= _LARGE]
        test = min(most, max(1, round(patients / 4)))
        text = f"About a quarter of {patients} patients, at most {most}; they are drawn by seed and never trained on."
    test = choices.choose("test_patients", test, text)
    left = patients if own.get("test") else patients - _number(test, patients)
    if own.get("validation"):
        validation, text = own["validation"], f"Those{kept}"
    elif left < 2:
        validation = 0
        text = (
            "None: there are so few patients that all others are used for training; the last epoch's weights are kept."
        )
    else:
        validation = min(_MOST_VALIDATION, max(1, round(patients / 10)))
        text = f"About a tenth, at most {_MOST_VALIDATION}: they choose the best epoch."
    validation = choices.choose("val_patients", validation, text)
    left = left if own.get("validation") else left - _number(validation, patients)
    left = max(1, left)
    if left > _MOST_TRAINING:
        train, text = (
            _MOST_TRAINING,
            f"Of {left}: their volumes are kept on disk, and more would not be seen often enough.",
        )
        train = choices.choose("train_patients", train, text)
    else:
        train = choices.choose("train_patients", None, f"All {left} that remain.")
    rare = found.slices_total and found.foreground_slices < _RARE * found.slices_total
    share = found.foreground_slices / max(1, found.slices_total)
    text = f"{share:.0%} of the slices show a class; " + (
        "those without are left out." if rare else "all may be drawn."
    )
    least = choices.choose("min_classes", int(bool(rare)), text)
    usable = found.foreground_slices if least else found.slices_total
    there = max(1, round(usable * (train or left) / found.patients))
    if there > _MOST_SLICES:
        text = (
            f"Drawn by seed from about {there}, so that each is seen several times. `--num-slices` sets another number."
        )
        choices.choose("num_slices", _MOST_SLICES, text)
    else:
        choices.choose("num_slices", None, f"All of the training patients, about {there}.")
    choices.training_slices = min(there, choices["num_slices"] or there)


def _number(asked: float, patients: int) -> int:
    """Number of patients, from a number or a share."""
    return int(asked) if asked >= 1 else round(asked * patients)


def choose_steps(
    found: Findings, choices: Choices, machine: Machine, peak: Callable[[dict[str, Any]], float] | None
) -> None:
    """Choose batch, checkpointing, rates, average of weights, warmup, epochs and validations.

    Args:
        found: of the data.
        choices: made until now.
        machine: to train on.
        peak: predicts the memory of a training step with fields of ``dataset.json``; None assumes that all fits.
    """
    encoder, size = choices["encoder"], choices["image_size"]
    large = encoder not in ("vit_t", "vit_test")
    batch = 12 if large and machine.gpu else 2 if size >= _LARGE_INPUT and not machine.gpu else 4
    batch, checkpointing, text = _fitting(choices, machine, peak, batch)
    batch = choices.choose("batch_size", batch, text[0])
    choices.choose("checkpointing", checkpointing, text[1])
    small_input = size < _LARGE_INPUT and not large
    choices.choose("inference_batch_size", 16 if small_input else 4, "By the size of the input.")
    feeding = "Two processes feed the GPU." if machine.gpu else "No other processes: the training takes all cores."
    choices.choose("num_workers", 2 if machine.gpu else 0, feeding)
    papers = large and batch >= 12
    steps, why_steps = _steps(size, papers, machine)
    short = not large and steps < 1000
    rates = (0.005, 0.001) if papers else (0.001, 0.0005 if short else 0.0002)
    text = (
        "the papers', for their batch of 12"
        if papers
        else "low, because small batches do not learn at the papers' (measured on hippocampus)"
    )
    choices.choose("lr", rates[0], f"Rate of the decoder: {text}.")
    faster = ", and higher because there are so few steps, in which it then learns more" if short else ""
    choices.choose("encoder_lr", rates[1], f"Rate of the encoder: {text}{faster}.")
    text = (
        "The rate falls to 0, so an average of the weights gains nothing (measured on hippocampus), and takes memory."
    )
    choices.choose("ema_momentum", None, text)
    per_epoch = math.ceil(choices.training_slices / batch)
    epochs = min(_EPOCHS, max(1, round(steps / per_epoch)))
    text = f"{per_epoch} steps each, about {epochs * per_epoch} in all: {why_steps}."
    epochs = choices.choose("epochs", epochs, text)
    warmup = max(1, min(250 if papers else 50, round(0.1 * epochs * per_epoch)))
    choices.choose("warmup_steps", warmup, "A tenth of the steps at most.")
    interval = max(1, epochs // _VALIDATIONS)
    choices.choose("val_interval", interval, f"Epochs from one validation to the next, {epochs // interval} in all.")


def _steps(size: int, papers: bool, machine: Machine) -> tuple[int, str]:
    if papers:
        return 2500, "as bundle amos"
    if machine.gpu or size < 168:
        return 1000, "as bundle hippocampus"
    if size < _LARGE_INPUT:
        return 600, "fewer than bundle hippocampus, because a step takes longer without a GPU"
    return 300, "few, because a step takes seconds without a GPU; more epochs make it better"


def _fitting(
    choices: Choices, machine: Machine, peak: Callable[[dict[str, Any]], float] | None, batch: int
) -> tuple[int, str, tuple[str, str]]:
    """The largest batch, with the least recomputation, that fits the memory."""
    batch = choices.asked.get("batch_size", batch)
    if peak is None:
        return batch, "off", ("As usual for this encoder and size.", "Nothing has to be computed twice.")
    asked = choices.asked.get("checkpointing")
    sizes = [batch] if "batch_size" in choices.asked else [n for n in (batch, batch // 2, batch // 4, 1) if n >= 1]
    tried = [(n, c) for n in dict.fromkeys(sizes) for c in ([asked] if asked else CHECKPOINTING)]
    room = f"the {machine.memory / 1e9:.1f} GB that {machine.words} has for it"
    for number, checkpointing in tried:
        taken = peak({**choices.values(), "batch_size": number, "checkpointing": checkpointing})
        if taken <= machine.memory:
            break
    said = f"a step takes {taken / 1e9:.1f} GB (predicted) of {room}"
    if taken > machine.memory:
        said = f"a step takes {taken / 1e9:.1f} GB (predicted), MORE than {room}; a smaller --image-size takes less"
    again = "Nothing has to be" if checkpointing == "off" else "What would not fit is"
    return number, checkpointing, (f"{said[0].upper()}{said[1:]}.", f"{again} computed twice: {said}.")
