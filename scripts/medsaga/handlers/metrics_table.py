"""The score of an evaluation as a table: printed, and saved for spreadsheets, programs and reports."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from medsaga.metrics import segmentation_metrics
from medsaga.reading import name_without_suffix

__all__ = ["MetricsTable", "case_name"]

_MEASURES = ("dice", "hd95", "slice_dice", "slice_hd95")


def case_name(image: MetaTensor) -> str:
    """The case's name, as reading has given it; else that of the file, without folder and suffix."""
    return str(image.meta.get("case") or name_without_suffix(str(image.meta["filename_or_obj"])))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


class MetricsTable:
    """Ignite handler of a MONAI evaluator: Dice and HD95 (mm) per class and case, per volume and per slice.

    Writes ``metrics.csv`` (a line for each case and class), ``metrics.json`` (mean, standard deviation and number of
    values by class, and over classes) and ``metrics.md`` (the table that is printed). A measure without a value (see
    :func:`medsaga.metrics.segmentation_metrics`) is left out of the means. The table also has the number of cases in
    which a class was missed completely, or drawn where there is none.

    Args:
        output_dir: folder of the three files.
        class_names: of all classes, background first.
        notes: sentences to read with the figures, below the table (:func:`~medsaga.data.record_notes`).
    """

    def __init__(self, output_dir: str | Path, class_names: Sequence[str], notes: Sequence[str] = ()) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.notes = list(notes)
        self.rows: list[dict] = []
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: evaluator whose output has ``image``, ``label`` and ``pred`` (class numbers).
        """
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _add(self, engine: Engine) -> None:
        for item in engine.state.output:
            image, label = item["image"], item["label"]
            spacing = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * (image.ndim - 1)
            for row in segmentation_metrics(item["pred"].cpu(), label.cpu(), len(self.class_names), spacing):
                self.rows.append({"case": case_name(image), **row, "class": self.class_names[row["class"]]})

    def _finish(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output_dir / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["case", "class", *_MEASURES])
            writer.writeheader()
            writer.writerows(self.rows)
        summary = self.summary()
        (self.output_dir / "metrics.json").write_text(json.dumps(summary, indent=2))
        table = self._table(summary)
        (self.output_dir / "metrics.md").write_text(table)
        self.logger.info(f"{len(self.rows) // (len(self.class_names) - 1)} cases, in {self.output_dir}:\n{table}")

    def summary(self) -> dict[str, dict]:
        """{class or "mean": {measure: {"mean", "std", "n"}}}; "mean" summarises each case's mean over its classes."""
        groups = {name: [row for row in self.rows if row["class"] == name] for name in self.class_names[1:]}
        result: dict[str, dict] = {}
        for name, rows in groups.items():
            result[name] = {m: _statistics([row[m] for row in rows]) for m in _MEASURES}
            result[name]["missed_or_invented"] = int(sum(np.isnan(r["hd95"]) and not np.isnan(r["dice"]) for r in rows))
        # by position: cases of different folders may have the same name
        by_case = [self.rows[i : i + len(groups)] for i in range(0, len(self.rows), len(groups))]
        result["mean"] = {m: _statistics([_nanmean([row[m] for row in rows]) for rows in by_case]) for m in _MEASURES}
        result["mean"]["missed_or_invented"] = sum(result[name]["missed_or_invented"] for name in groups)
        return result

    def _table(self, summary: dict[str, dict]) -> str:
        lines = [
            "| Class | Dice (volume) | HD95 mm (volume) | Dice (slice) | HD95 mm (slice) | missed or invented |",
            "|---|---|---|---|---|---|",
        ]
        for name, measures in summary.items():
            cells = []
            for measure in _MEASURES:
                mean, std = measures[measure]["mean"], measures[measure]["std"]
                digits = 3 if measure.endswith("dice") else 2
                cells.append("–" if mean is None else f"{mean:.{digits}f} ± {std:.{digits}f}")
            lines.append(f"| {name} | {' | '.join(cells)} | {measures['missed_or_invented']} |")
        # with a blank line, because Markdown would take the note for a row of the table
        lines += [line for note in self.notes for line in ("", note)]
        return "\n".join(lines) + "\n"


def _nanmean(values: list[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _statistics(values: list[float]) -> dict[str, float | int | None]:
    known = [v for v in values if not np.isnan(v)]
    return {
        "mean": _number(_nanmean(values)),
        "std": float(np.std(known)) if known else None,
        "n": len(known),
    }
