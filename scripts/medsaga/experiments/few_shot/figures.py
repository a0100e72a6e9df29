"""Dice against N, losses, and cases, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..bundle_run import is_done
from .plan import Experiment, Run
from .results import by_case

__all__ = ["draw_cases", "draw_dice", "draw_losses"]

_WINDOW = 10  # steps a loss is averaged over


def draw_dice(rows: pd.DataFrame, methods: Sequence[str], path: Path) -> None:
    """Mean Dice against the number of training images (MedSAGa's Fig. 2), a panel for each data set.

    Bars are standard deviations over seeds, where there are several.
    """
    means = by_case(rows).groupby(["bundle", "method", "num_images", "seed"], as_index=False)["dice"].mean()
    bundles = sorted(means["bundle"].unique())
    figure = Figure(figsize=(4.5 * len(bundles) + 2, 3.8), layout="constrained")
    panels = figure.subplots(1, len(bundles), squeeze=False)[0]
    for axes, bundle in zip(panels, bundles):
        own = means[means["bundle"] == bundle]
        for place, method in enumerate(methods):
            curve = own[own["method"] == method].groupby("num_images")["dice"].agg(["mean", "std"])
            if len(curve):
                axes.errorbar(
                    curve.index, curve["mean"], curve["std"].fillna(0), fmt="o", capsize=3, label=method,
                    color=f"C{place % 10}", linestyle="-" if place < 10 else "--",
                )  # fmt: skip
        ticks = sorted(own["num_images"].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set(title=bundle, xlabel="training images (slices)", ylabel="mean Dice of test cases")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def draw_losses(runs: Sequence[Run], methods: Sequence[str], work: Path, path: Path) -> bool:
    """Training losses by step (MedSAGa's Fig. 4), a panel for data set and N, of the first seed.

    Returns:
        whether there was anything to draw.
    """
    seed = min(run.seed for run in runs)
    chosen = [run for run in runs if run.method in methods and run.seed == seed and is_done(work / run.name)]
    places = sorted({(run.bundle, run.num_images) for run in chosen})
    if not places:
        return False
    figure = Figure(figsize=(4.5 * len(places), 3.6), layout="constrained")
    for axes, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places):
        for run in (run for run in chosen if (run.bundle, run.num_images) == place):
            steps, losses = _losses(work / run.name / "output" / "tensorboard")
            smooth = np.convolve(losses, np.ones(_WINDOW) / _WINDOW, mode="valid") if len(losses) > _WINDOW else losses
            axes.plot(steps[len(steps) - len(smooth) :], smooth, label=run.method, color=_colour(methods, run.method))
        axes.set(title=f"{place[0]}, {place[1]} images", xlabel="step", ylabel=f"loss, mean of {_WINDOW} steps")
        axes.legend(fontsize=8)
    _save(figure, path)
    return True


def _losses(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a run, of the last writing where a run was resumed."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tag = next(tag for tag in events.Tags()["scalars"] if "loss" in tag and "epoch" not in tag)
    by_step = {event.step: event.value for event in events.Scalars(tag)}
    steps = np.array(sorted(by_step))
    return steps, np.array([by_step[step] for step in steps])


def draw_cases(experiment: Experiment, rows: pd.DataFrame, work: Path) -> list[Path]:
    """Best, median and worst test case of the first of the pictured methods, as segmented by each of them.

    One picture for each data set, at its largest N and first seed, where all pictured methods are done.

    Returns:
        the files written, in ``work``.
    """
    written = []
    cases = by_case(rows)
    for bundle in sorted({run.bundle for run in experiment.runs}):
        own = [run for run in experiment.runs if run.bundle == bundle and run.method in experiment.pictures]
        if not own:
            continue
        images, seed = max(run.num_images for run in own), min(run.seed for run in own)
        chosen = {r.method: r for r in own if (r.num_images, r.seed) == (images, seed) and is_done(work / r.name)}
        if list(chosen) != list(experiment.pictures):
            continue
        at = (cases["bundle"] == bundle) & (cases["num_images"] == images) & (cases["seed"] == seed)
        ranked = cases[at & (cases["method"] == experiment.pictures[0])].sort_values("dice")["case"].tolist()
        shown = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
        figure = Figure(figsize=(6 * len(chosen), 6.5), layout="constrained")
        panels = figure.subplots(len(shown), len(chosen), squeeze=False)
        for row, (what, case) in zip(panels, shown.items()):
            for axes, (method, run) in zip(row, chosen.items()):
                axes.imshow(imread(work / run.name / "output" / "evaluation" / f"{case}.png"))
                dice = cases[at & (cases["method"] == method) & (cases["case"] == case)]["dice"].item()
                axes.set_title(f"{method}: {what} case {case}, Dice {dice:.3f}", fontsize=9)
                axes.axis("off")
        written.append(work / f"cases_{bundle}.png")
        _save(figure, written[-1])
    return written


def _colour(methods: Sequence[str], method: str) -> str:
    return f"C{list(methods).index(method) % 10}"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
