"""A learning curve from the trainings of one folder: what more labels would bring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medsaga.files import replacing, write_json
from medsaga.metrics import Forecast, forecast

__all__ = ["add_to_curve"]

_FILE = "learning_curve.json"
_COUNTS = ("seed", "train_patients", "num_slices", "max_epochs")  # settings in which points of one curve may differ

Point = dict[str, Any]


def add_to_curve(
    folder: Path, record: Mapping[str, Any], settings: Mapping[str, Any], scores: Sequence[Sequence[float]]
) -> list[str]:
    """Add a training to the learning curve of its folder, draw the curve, and describe it in sentences.

    Points of one curve have the same validation patients, classes and settings, except for the seed and the numbers of
    patients, slices and epochs. A training replaces an earlier one with the same numbers and seed.

    Args:
        folder: of the run: gets ``learning_curve.json`` and, from two numbers of labels on, ``learning_curve.png``.
        record: of the training, see :func:`~medsaga.data.training_record`.
        settings: of the run.
        scores: Dice of the served weights on the validation cases, one row for each case and one value for each class
            without background; NaN where a label does not show the class.

    Returns:
        Sentences without names of patients.
    """
    values = np.array(scores)
    names = record["class_names"][1:]
    means = [float(np.nanmean(column)) if not np.isnan(column).all() else None for column in values.T]
    point: Point = {
        "patients": len(record["train"]),
        "slices": sum(len(case["slices"]) for case in record["slices"]),
        "seed": settings.get("seed"),
        "dice": float(np.nanmean(np.nanmean(values, axis=1))),
        "classes": dict(zip(names, means)),
        "curve": {
            "validation": record["validation"],
            "settings": {key: value for key, value in settings.items() if key not in _COUNTS},
        },
    }
    path = folder / _FILE
    points = [other for other in _read(path) if _number(other) != _number(point) or other["curve"] != point["curve"]]
    points.append(point)
    write_json(path, points)
    same_curve = [other for other in points if other["curve"] == point["curve"]]
    return _sentences(folder, same_curve, len(record["validation"]))


def _read(path: Path) -> list[Point]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # an unreadable file is discarded; a training must not fail because of it
        return []


def _number(point: Point) -> tuple:
    return point["patients"], point["slices"], point["seed"]


def _sentences(folder: Path, points: list[Point], cases: int) -> list[str]:
    last = points[-1]
    unit = "patients" if len({point["patients"] for point in points}) > 1 else "slices"
    points = sorted(points, key=lambda point: point[unit])
    counts, scores = [point[unit] for point in points], [point["dice"] for point in points]
    found = ", ".join(f"{score:.3f} with {count}" for count, score in zip(counts, scores))
    lines = [f"Learning curve, mean Dice of {cases} validation patients by {unit}: {found}."]
    if len(set(counts)) < 2:
        half = max(1, last["slices"] // 2)
        lines.append(
            f"A curve needs two numbers of labels. Train with fewer, such as --num_slices {half} --model_path FILE, or "
            "later with more, to see how much more labels would help."
        )
    else:
        twice = forecast(counts, scores, 2 * last[unit])
        _draw(folder / "learning_curve.png", counts, scores, unit)
        lines.append(f"Expected mean Dice with {twice.count}: {twice}, for patients like these.")
        if not twice.pays(last["dice"]):
            lines.append("Twice the labels are expected to raise Dice by less than 0.01: more labels hardly help.")
    known = {name: dice for name, dice in last["classes"].items() if dice is not None}
    if len(known) > 1:
        name = min(known, key=known.__getitem__)
        lines.append(f"The class with the lowest Dice is {name}: {known[name]:.3f}.")
    return lines


def _draw(path: Path, counts: Sequence[int], scores: Sequence[float], unit: str) -> None:
    expected: list[Forecast] = [
        forecast(counts, scores, round(at)) for at in np.geomspace(min(counts), 4 * max(counts), 24)
    ]
    at = [point.count for point in expected]
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(at, [p.low for p in expected], [p.high for p in expected], alpha=0.25, label="80 % interval")
    axes.plot(at, [p.expected for p in expected], label="expected")
    axes.plot(counts, scores, "o", label="measured")
    axes.set(xscale="log", xlabel=f"labelled {unit}", ylabel="mean Dice, validation")
    axes.legend(loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
