"""What runs have left, as a tidy table, and as tables to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..bundle_run import is_done
from .plan import Run

__all__ = ["by_case", "collect", "costs_table", "seeds_table", "table"]

_GROUP = ["bundle", "num_images", "method"]


def collect(runs: Sequence[Run], work: Path) -> pd.DataFrame:
    """One row for each run that is done, test case and class.

    Returns:
        columns ``bundle``, ``num_images``, ``method``, ``seed``, ``case``, ``class``, ``dice``, ``hd95`` (mm),
        ``slice_dice``, ``slice_hd95``, ``minutes``, ``peak_rss_gib``.
    """
    frames = []
    for run in runs:
        folder = work / run.name
        if not is_done(folder):
            continue
        cost = json.loads((folder / "run.json").read_text())
        frame = pd.read_csv(folder / "output" / "evaluation" / "metrics.csv")
        keys = {"bundle": run.bundle, "num_images": run.num_images, "method": run.method, "seed": run.seed}
        for place, (key, value) in enumerate(keys.items()):
            frame.insert(place, key, value)
        frame["minutes"], frame["peak_rss_gib"] = cost["minutes"], cost["peak_rss"] / 2**30
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def by_case(rows: pd.DataFrame) -> pd.DataFrame:
    """Each test case's mean over its classes; a measure without a value (a class that is absent) is left out."""
    return rows.groupby([*_GROUP, "seed", "case"], as_index=False)[["dice", "hd95"]].mean()


def table(rows: pd.DataFrame, methods: Sequence[str]) -> str:
    """Markdown in the layout of MedSAGa's Table 1: a line for data set and N, a column for each method.

    A cell is Dice / HD95 (mm), mean ± standard deviation over test cases and seeds.
    """
    cases = by_case(rows)
    present = [method for method in methods if (cases["method"] == method).any()]
    lines = [f"| Data, N images | {' | '.join(present)} |", "|---" * (len(present) + 1) + "|"]
    for (bundle, images), group in cases.groupby(["bundle", "num_images"], sort=True):
        best = group.groupby("method")["dice"].mean().idxmax()
        cells = [_cell(group[group["method"] == method], bold=method == best) for method in present]
        lines.append(f"| {bundle} {images} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(cases: pd.DataFrame, bold: bool) -> str:
    if cases.empty:
        return "–"
    dice = f"{cases['dice'].mean():.3f} ± {cases['dice'].std(ddof=0):.3f}"
    hd95 = cases["hd95"].dropna()
    distance = f"{hd95.mean():.1f} ± {hd95.std(ddof=0):.1f}" if len(hd95) else "–"
    return f"{f'**{dice}**' if bold else dice} / {distance}"


def seeds_table(rows: pd.DataFrame, methods: Sequence[str]) -> str:
    """Markdown: where there are several seeds, mean ± standard deviation over seeds of the test cases' mean Dice."""
    means = by_case(rows).groupby([*_GROUP, "seed"], as_index=False)["dice"].mean()
    lines = ["| Data, N images | Method | Dice by seed | Mean ± sd over seeds |", "|---|---|---|---|"]
    for (bundle, images), group in means.groupby(["bundle", "num_images"], sort=True):
        for method in methods:
            values = group[group["method"] == method].sort_values("seed")["dice"]
            if len(values) > 1:
                shown = ", ".join(f"{value:.3f}" for value in values)
                lines.append(
                    f"| {bundle} {images} | {method} | {shown} | {values.mean():.3f} ± {values.std(ddof=1):.3f} |"
                )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def costs_table(rows: pd.DataFrame, methods: Sequence[str]) -> str:
    """Markdown: minutes of a training and its process's peak resident memory (GiB), by method and data set."""
    runs = rows.drop_duplicates([*_GROUP, "seed"])
    bundles = sorted(runs["bundle"].unique())
    lines = [
        f"| Method | {' | '.join(f'{b}: minutes' for b in bundles)} | {' | '.join(f'{b}: GiB' for b in bundles)} |",
        "|---" * (2 * len(bundles) + 1) + "|",
    ]
    for method in methods:
        own = runs[runs["method"] == method].groupby("bundle")
        own = own.agg(minutes=("minutes", "mean"), peak=("peak_rss_gib", "max"))
        if len(own):
            own = own.reindex(bundles)
            cells = [_number(v, 1) for v in own["minutes"]] + [_number(v, 2) for v in own["peak"]]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"
