"""Table and figure of what training steps take, measured beside predicted."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from medsaga.processes import process_context

from .accounting import CATEGORIES
from .measure import Measurement, measure
from .predict import predict
from .setup import Setup

__all__ = ["Row", "draw", "report_row", "table"]

_MB = 1e6


@dataclass(frozen=True)
class Row:
    """One method.

    Args:
        name: what to call it.
        predicted: predicted peak by category, in bytes.
        measured: None where it was only predicted.
    """

    name: str
    predicted: dict[str, int]
    measured: Measurement | None


def report_row(name: str, setup: Setup, predict_only: bool) -> Row:
    """Predict and, unless told otherwise, measure what a bundle trains with."""
    if predict_only:
        return Row(name, predict(setup), None)
    # no fork of this process, which would begin with its memory
    with ProcessPoolExecutor(1, process_context()) as pool:
        return Row(name, *pool.submit(_predict_and_measure, setup).result())


def _predict_and_measure(setup: Setup) -> tuple[dict[str, int], Measurement]:
    # predicted first: what imports take is then in memory before the measurement begins
    return predict(setup), measure(setup)


def table(rows: list[Row]) -> str:
    """The rows as a table in MB (10^6 bytes), for a terminal and for Markdown."""
    lines = [["MB", *CATEGORIES, "peak", "measured / predicted", "process", "s / step"]]
    for row in rows:
        predicted = sum(row.predicted.values())
        if row.measured is not None:
            split, process = row.measured.split, row.measured.process
            measured = sum(split.values())
            ratio = f"{measured / predicted:.3f}"
            taken = "-" if process is None else f"{process / _MB:.1f}"
            lines.append([f"{row.name}, measured", *_megabytes(split), ratio, taken, f"{row.measured.seconds:.2f}"])
        lines.append([f"{row.name}, predicted", *_megabytes(row.predicted), "", "", ""])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths)) + " |" for line in lines)


def draw(rows: list[Row], title: str, file: Path) -> None:
    """Draw one stacked bar per row, after Fig. 1 of MedSAGa (arXiv 2407.15042): measured, else predicted."""
    splits = [row.predicted if row.measured is None else row.measured.split for row in rows]
    names = [f"{row.name}\n({'predicted' if row.measured is None else 'measured'})" for row in rows]
    figure = Figure(figsize=(2.5 + 1.4 * len(rows), 4.5), layout="constrained")
    axes = figure.subplots()
    bottom = [0.0] * len(rows)
    for category in CATEGORIES:
        heights = [split[category] / _MB for split in splits]
        axes.bar(names, heights, 0.6, bottom, label=category)
        bottom = [low + height for low, height in zip(bottom, heights)]
    for place, total in enumerate(bottom):
        axes.text(place, total, f"{total:.0f}", ha="center", va="bottom")
    axes.set_ylim(0, 1.1 * max(bottom))  # room for the number of the tallest bar
    axes.set_ylabel("peak of a training step, MB")
    figure.suptitle(title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _megabytes(split: dict[str, int]) -> list[str]:
    return [f"{size / _MB:.1f}" for size in (*(split[category] for category in CATEGORIES), sum(split.values()))]
