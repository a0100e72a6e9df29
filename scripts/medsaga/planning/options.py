"""The choices that a user can make on the command line."""

from __future__ import annotations

import argparse
import re
from typing import Any

from medsaga.networks.checkpointing import CHECKPOINTING
from medsaga.networks.encoders import ENCODERS
from medsaga.transforms.orient_slices import ALL_PLANES, PLANES

__all__ = ["add_choices", "asked", "label_values"]


# each option sets the field of dataset.json with the same name
_CHOICES: dict[str, dict[str, Any]] = {
    "--encoder": {"choices": ENCODERS},
    "--weights": {"help": "weights to start from: lite_medsam, sam_vit_b, medsam_vit_b, ..., a file, or none"},
    "--image-size": {"type": int, "help": "side of the network's input in pixels"},
    "--plane": {"choices": (*PLANES, ALL_PLANES), "help": "plane in which volumes are cut into slices"},
    "--intensities": {"metavar": "LOW,HIGH", "help": "range of values as -160,240, or percentiles as 0.5%%,99.5%%"},
    "--flip": {"action": argparse.BooleanOptionalAction, "help": "whether training mirrors left and right"},
    "--largest-component": {"nargs": "*", "metavar": "NAME", "help": "classes that are one connected piece, or none"},
    "--test-patients": {"type": float, "help": "number of them, or a share below 1"},
    "--val-patients": {"type": float, "help": "number of them, or a share below 1"},
    "--train-patients": {"type": int},
    "--num-slices": {"type": int, "help": "number of training slices, drawn from those of the training patients"},
    "--min-classes": {"type": int, "help": "train only on slices that show at least so many classes"},
    "--batch-size": {"type": int},
    "--checkpointing": {"choices": CHECKPOINTING, "help": "what backward computes again to save memory"},
    "--epochs": {"type": int},
    "--lr": {"type": float, "help": "learning rate of the decoder"},
    "--encoder-lr": {"type": float, "help": "learning rate of the encoder"},
    "--ema-momentum": {"type": float, "help": "share of the newest step in the average of weights; 0 for none"},
    "--warmup-steps": {"type": int},
    "--val-interval": {"type": int, "help": "number of epochs between validations"},
    "--num-workers": {"type": int, "help": "number of processes that load slices in training"},
    "--inference-batch-size": {"type": int},
}


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``create``, each of which sets a field of ``dataset.json``."""
    choices = parser.add_argument_group("choices", "chosen from the data if they are not given")
    for option, settings in _CHOICES.items():
        choices.add_argument(option, **settings)
    about = parser.add_argument_group("about the bundle and the machine")
    about.add_argument("--title", help="title of the model card")
    about.add_argument("--description", help="what the bundle segments, in a sentence")
    about.add_argument("--source", help="where the data come from")
    about.add_argument("--memory", metavar="SIZE", help="memory of the GPU to plan for, as 8GB (default: this machine)")


def asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Value by field of ``dataset.json`` of what a user asked for.

    Raises:
        ValueError: a value that its field cannot have.
    """
    fields = [option.removeprefix("--").replace("-", "_") for option in _CHOICES]
    values = {field: getattr(arguments, field) for field in fields if getattr(arguments, field) is not None}
    for field in ("test_patients", "val_patients"):
        if values.get(field, 0) >= 1:
            values[field] = int(values[field])
    least = dict.fromkeys(
        ("test_patients", "val_patients", "min_classes", "warmup_steps", "num_workers", "ema_momentum"), 0
    )
    for field, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < least.get(field, 1e-12):
            raise ValueError(
                f"--{field.replace('_', '-')} is {value}; it must be "
                f"{'0 or more' if field in least else 'more than 0'}."
            )
    if values.get("weights") == "none":
        values["weights"] = None
    if values.get("ema_momentum") == 0:
        values["ema_momentum"] = None
    if "intensities" in values:
        values["intensities"] = _intensities(values["intensities"])
    return values


def _intensities(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"\s*(-?[\d.]+)\s*(%?)\s*,\s*(-?[\d.]+)\s*(%?)\s*", text)
    try:
        low, high = float(match[1]), float(match[3])
        if low >= high or match[2] != match[4] or (match[2] and not 0 <= low < high <= 100):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"--intensities is {text!r}; it must be two values as -160,240, or two percentiles as 0.5%,99.5%, the "
            "lower first."
        ) from None
    return {"percentiles": [low, high], "floor": None} if match[2] else {"range": [low, high]}


def label_values(text: str | None) -> list[int] | str | None:
    """What ``--label-values`` says.

    Raises:
        ValueError: neither numbers nor ``instances``.
    """
    if text is None or text == "instances":
        return text
    try:
        values = [int(word) for word in text.split(",")]
        if len(set(values)) < len(values) or 0 in values:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--label-values is {text!r}; it must be the numbers of the classes, each once and without 0, as "
            "150,200,250, or instances."
        ) from None
    return values
