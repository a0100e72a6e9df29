"""Texts of a bundle's metadata and README that follow from the fields of its ``dataset.json``."""

from __future__ import annotations

import math
from typing import Any

from medsaga import __version__
from medsaga.networks import PUBLISHED

__all__ = ["FILTERS", "derived"]


def derived(values: dict[str, Any]) -> dict[str, Any]:
    """The values that the template needs besides the fields themselves.

    Args:
        values: all fields, as :func:`~medsaga.bundle.dataset.complete` gives them.
    """
    classes, slices = values["class_names"], values["num_slices"]
    originals, targets = _mapping(values["label_values"], len(classes))
    channels = ["red", "green", "blue"] if values["colour"] else values["channel_names"]
    unit = "Hounsfield units" if values["modality"] == "CT" else "intensities"
    return {
        "medsaga_version": __version__,
        "model_name": values["model_name"] or values["name"].replace("_", " "),
        "input_channels": channels,
        "logit_size": values["image_size"] // (1 if values["encoder"] == "vit_t" else 4),
        "orig_labels": originals,
        "target_labels": targets,
        "unit": unit,
        "image_classes": f"{_channels(channels, values['colour'])}, {_scaling(values, unit)} to [0, 1]",
        "label_classes": "single channel, " + _listed(classes) + _in_labels(values["label_values"]),
        "pred_classes": f"{len(classes)} channels of logits: " + ", ".join(classes),
        "mapped_values": _mapped(originals, targets, classes),
        "published": PUBLISHED.get(values["weights"]),
        "steps": math.ceil(slices / values["batch_size"]) if slices else None,
        "data_path": values["dataset_dir"] or f"data/{values['folder']}",
    }


def _mapping(label_values: list | str | None, num_classes: int) -> tuple[list[int], list[int]]:
    """Numbers in labels, and the class of each."""
    if not isinstance(label_values, list):
        return [], []
    first = num_classes - len(label_values)  # 1 where that of background is left out
    pairs = [
        (number, target)
        for target, entry in enumerate(label_values, first)
        for number in (entry if isinstance(entry, list) else [entry])
    ]
    return [number for number, _ in pairs], [target for _, target in pairs]


def _channels(channels: list[str], colour: bool) -> str:
    if colour:
        return "three channels (RGB)"
    return "single channel" if len(channels) == 1 else f"{len(channels)} channels ({', '.join(channels)})"


def _scaling(values: dict[str, Any], unit: str) -> str:
    intensities = values["intensities"]
    if "range" in intensities:
        low, high = intensities["range"]
        return f"{unit} from {low:g} to {high:g} scaled"
    whole = "volume" if values["plane"] else "image"
    whole = f"channel and {whole}" if len(values["channel_names"]) > 1 else whole
    if intensities["floor"] is None:
        return f"intensities scaled by percentile per {whole}"
    floor = f"{intensities['floor']:g}"
    what = " (Hounsfield units of air and lung)" if "CT" in values["modality"] else ""
    return f"values below {floor}{what} raised to {floor}, then scaled by percentile per {whole}"


def _listed(classes: list[str]) -> str:
    return ", ".join(f"{i} = {name}" for i, name in enumerate(classes))


def _in_labels(label_values: list | str | None) -> str:
    if label_values is None:
        return ""
    if label_values == "instances":
        return " (each object has a number of its own in the labels)"
    entries = ("+".join(map(str, e)) if isinstance(e, list) else str(e) for e in label_values)
    return f" ({', '.join(entries)} in the labels)"


def _mapped(originals: list[int], targets: list[int], classes: list[str]) -> str:
    return ", ".join(f"{number} → {target} {classes[target]}" for number, target in zip(originals, targets))


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _ordinal(value: float) -> str:
    return "lowest" if value == 0 else f"{value:g}th"


def _patients(value: float) -> str:
    return f"{value:g}" if value >= 1 or value == 0 else f"{value:.0%} of them"


FILTERS = {
    "at_least": lambda number: "a class" if number == 1 else f"{number} or more classes",
    "number": _number,
    "numbered": lambda names: {str(i): name for i, name in enumerate(names)},
    "ordinal": _ordinal,
    "patients": _patients,
    "quoted_parts": lambda path: ", ".join(f"'{part}'" for part in path.split("/")),
}
