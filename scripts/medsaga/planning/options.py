"""The choices that a user can make on the command line."""

from __future__ import annotations

import argparse
import re
from typing import Any

from medsaga.networks.encoders import ENCODERS

__all__ = ["add_choices", "asked", "label_values"]

_PLANES = ("auto", "axial", "coronal", "sagittal")
_CHECKPOINTING = ("off", "blocks", "least")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``create`` that stand for a field of ``dataset.json`` each."""
    choices = parser.add_argument_group("choices", "made from the data where they are not given")
    add = choices.add_argument
    add("--encoder", choices=ENCODERS)
    add("--weights", help="lite_medsam, sam_vit_b, medsam_vit_b, ..., a file, or none")
    add("--image-size", type=int, help="side of the network's input in pixels")
    add("--plane", choices=_PLANES, help="in which volumes are cut")
    add("--intensities", metavar="LOW,HIGH", help="values as -160,240, or percentiles as 0.5%%,99.5%%")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="whether training mirrors left and right")
    add("--test-patients", type=float, help="number, or share below 1")
    add("--val-patients", type=float, help="number, or share below 1")
    add("--train-patients", type=int)
    add("--num-slices", type=int, help="training slices, drawn from those of the training patients")
    add("--min-classes", type=int, help="train only on slices that show so many classes")
    add("--batch-size", type=int)
    add("--checkpointing", choices=_CHECKPOINTING, help="what backward computes again to save memory")
    add("--epochs", type=int)
    add("--lr", type=float, help="rate of the decoder")
    add("--encoder-lr", type=float, help="rate of the encoder")
    add("--warmup-steps", type=int)
    add("--val-interval", type=int, help="epochs between validations")
    add("--num-workers", type=int, help="processes that load slices in training")
    add("--inference-batch-size", type=int)
    about = parser.add_argument_group("about the bundle and the machine")
    about.add_argument("--title", help="what the model card is headed with")
    about.add_argument("--description", help="what it segments, in a sentence")
    about.add_argument("--source", help="where the data come from")
    about.add_argument("--memory", metavar="SIZE", help="of the GPU to plan for, as 8GB (default: this machine)")


def asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Value by field of ``dataset.json`` of what a user asked for.

    Raises:
        ValueError: a value that its field cannot have.
    """
    fields = {
        *("encoder", "weights", "image_size", "plane", "intensities", "flip", "test_patients", "val_patients"),
        *("train_patients", "num_slices", "min_classes", "batch_size", "checkpointing", "epochs", "lr", "encoder_lr"),
        *("warmup_steps", "val_interval", "num_workers", "inference_batch_size"),
    }
    values = {field: getattr(arguments, field) for field in fields if getattr(arguments, field) is not None}
    for field in ("test_patients", "val_patients"):
        if values.get(field, 0) >= 1:
            values[field] = int(values[field])
    least = {"test_patients": 0, "val_patients": 0, "min_classes": 0, "warmup_steps": 0, "num_workers": 0}
    for field, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < least.get(field, 1e-12):
            raise ValueError(
                f"--{field.replace('_', '-')} is {value}; it must be {least.get(field, 'more than 0')} or more."
            )
    if values.get("weights") == "none":
        values["weights"] = None
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
