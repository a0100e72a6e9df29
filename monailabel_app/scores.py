"""Show whether the model helps: how well its proposals agreed with what annotators made of them, over time.

``python -m monailabel_app.scores STUDIES_FOLDER [--output scores.png]``
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_app.lib.private import Private

__all__ = ["draw", "main", "mean", "read_scores", "table", "versions"]

MEASURES = {"dice": "Dice", "hd95": "HD95 (mm)"}


def read_scores(studies: str | Path) -> list[dict[str, Any]]:
    """Scores of a studies folder, oldest first; a line that was cut off by a full disk or a crash is left out.

    Raises:
        FileNotFoundError: there are none.
    """
    path = Private(studies).scores
    if not path.is_file():
        raise FileNotFoundError(
            f"No scores at {path}. Scores are made when a label is submitted for an image that the automatic model had "
            "segmented before."
        )
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            print(f"{path}, line {number} is damaged and left out.", file=sys.stderr)
    return sorted(lines, key=lambda line: line["time"])


def mean(values: Sequence[float | None]) -> float:
    """Mean of the values that are there, NaN without any."""
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else math.nan


def versions(lines: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Lines by model version, in the order in which versions were first used."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(_version(line), []).append(line)
    return list(groups.items())


def table(lines: Sequence[dict[str, Any]]) -> str:
    """All submissions, and the means of each model version over those images that the model cannot have learnt from."""
    rows = []
    for model in _models(lines):
        own = [line for line in lines if line["model"] == model]
        classes = list(own[-1]["dice"])
        width = max(12, *(len(c) for c in classes)) + 2
        image_width = max(len("image"), *(len(line["image"]) for line in own)) + 2
        rows.append(f"{model}: Dice / HD95 in mm of the proposal against the submitted label")
        head = f"{'time':<21}{'image':<{image_width}}{'annotator':<12}{'model of':<18}"
        rows.append(head + "".join(f"{c:<{width}}" for c in classes))
        for line in own:
            cells = [f"{_number(line['dice'].get(c))} / {_number(line['hd95'].get(c), 1)}" for c in classes]
            start = f"{line['time'][:19].replace('T', ' '):<21}{line['image']:<{image_width}}"
            who = f"{str(line.get('annotator') or '')[:11]:<12}{_version(line):<18}"
            rows.append(start + who + "".join(f"{c:<{width}}" for c in cells) + ("  seen" if line.get("seen") else ""))
        rows.append("")
        rows.append(f"{'model of':<18}{'images':<8}{'Dice':<8}{'HD95 (mm)'}")
        for version, group in versions(own):
            unseen = [line for line in group if not line.get("seen")]
            dice, hd95 = (mean([mean(list(line[m].values())) for line in unseen] or [None]) for m in MEASURES)
            rows.append(f"{version:<18}{len(unseen):<8}{_number(dice):<8}{_number(hd95, 1)}")
        if any(line.get("seen") for line in own):
            rows.append(
                "'seen': labelled before the proposal was made, so the model may have learnt from it; not in means."
            )
        rows.append("")
    return "\n".join(rows)


def draw(lines: Sequence[dict[str, Any]], output: str | Path) -> None:
    """Draw Dice and HD95 by class over time, with a line where another model version begins."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = _models(lines)
    figure, axes = plt.subplots(2, len(models), figsize=(7 * len(models), 6), squeeze=False, layout="constrained")
    for column, model in zip(axes.T, models):
        own = [line for line in lines if line["model"] == model]
        for axis, (measure, title) in zip(column, MEASURES.items()):
            for index, name in enumerate(own[-1]["dice"]):
                colour = f"C{index}"
                for seen, face in ((False, colour), (True, "none")):
                    points = [
                        (datetime.fromisoformat(line["time"]), line[measure][name])
                        for line in own
                        if bool(line.get("seen")) == seen and line[measure].get(name) is not None
                    ]
                    label = name if not seen else None
                    axis.scatter(
                        *(zip(*points) if points else ([], [])), edgecolors=colour, facecolors=face, label=label
                    )
            for version, group in versions(own):
                begin = datetime.fromisoformat(group[0]["time"])
                axis.axvline(begin, color="grey", linestyle="--", linewidth=0.8)
                axis.annotate(
                    f"model of {version}", (begin, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                    textcoords="offset points", rotation=90, va="top", fontsize=7, color="grey",
                )  # fmt: skip
            axis.set_ylabel(title)
            axis.grid(alpha=0.3)
            axis.tick_params(axis="x", rotation=20)
        column[0].set_ylim(-0.02, 1.02)
        column[1].set_ylim(bottom=0)
        column[0].set_title(f"{model}: proposal against submitted label (hollow: seen in training)", fontsize=10)
        column[0].legend(fontsize=8)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def _models(lines: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(line["model"] for line in lines))


def _version(line: dict[str, Any]) -> str:
    """When the weights were written (UTC), from MODEL@NANOSECONDS."""
    name, _, stamp = str(line.get("model_version") or "unknown").partition("@")
    if not stamp.isdigit():
        return name
    return f"{datetime.fromtimestamp(int(stamp) / 1e9, timezone.utc):%Y-%m-%d %H:%M}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        exit status: 1 where there are no scores.
    """
    parser = argparse.ArgumentParser(prog="python -m monailabel_app.scores", description=__doc__.splitlines()[0])
    parser.add_argument("studies", help="the server's studies folder (with a DICOM store: its cache)")
    parser.add_argument("--output", help="picture of the scores over time, e.g. scores.png")
    options = parser.parse_args(arguments)
    try:
        lines = read_scores(options.studies)
    except FileNotFoundError as err:
        print(err, file=sys.stderr)
        return 1
    print(table(lines))
    if options.output:
        draw(lines, options.output)
        print(f"Drawn to {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
