"""``python -m medsaga.experiments.active_learning``: what a label is worth, by how the images to label are chosen.

Each run is a server of the app on images without labels, and an annotator who knows the truth: he asks for the next
image, corrects what he is shown and submits it; at some numbers of labels the server trains. What has been done is not
done again, so the command may be killed and repeated.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.files import write_json
from medsaga.machine import describe_machine

from .active_learning_run import STRATEGIES, Run, Session
from .annotator import GOOD_ENOUGH
from .overrides import override

__all__ = ["main"]


@dataclass
class Point:
    """One strategy at one number of labels: a value for each seed that has come so far."""

    seeds: list[int]
    dice: list[float]  # mean over test patients
    clicks: list[int]  # all until here


def points(states: dict[Run, dict[str, Any]], labels: Sequence[int]) -> dict[str, dict[int, Point]]:
    """Results by strategy and number of labels, from what the runs' ``run.json`` hold."""
    found: dict[str, dict[int, Point]] = {}
    for run, state in states.items():
        for training in state["trainings"]:
            if "dice" in training and training["labels"] in labels:
                point = found.setdefault(run.strategy, {}).setdefault(training["labels"], Point([], [], []))
                point.seeds.append(run.seed)
                point.dice.append(float(np.mean(training["dice"])))
                point.clicks.append(sum(entry["clicks"] for entry in state["labels"][: training["labels"]]))
    return found


def table(found: dict[str, dict[int, Point]]) -> str:
    """Markdown: Dice, its difference to ``random`` at the same seeds, and clicks."""
    lines = ["| Strategy | Labels | Dice | Against random | Clicks | Seeds |", "|---|---|---|---|---|---|"]
    for strategy in sorted(found, key=STRATEGIES.index):
        for labels, point in sorted(found[strategy].items()):
            base = found.get("random", {}).get(labels)
            pairs = [
                d - base.dice[base.seeds.index(s)] for s, d in zip(point.seeds, point.dice) if base and s in base.seeds
            ]
            difference = _spread(pairs, "+.3f") if pairs and strategy != "random" else "–"
            cells = [strategy, labels, _spread(point.dice, ".3f"), difference, _spread(point.clicks, ".0f")]
            lines.append(f"| {' | '.join(map(str, cells))} | {len(point.seeds)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (of a sample, so none for one value)."""
    spread = f" ± {np.std(values, ddof=1):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def plot(found: dict[str, dict[int, Point]], path: Path) -> None:
    """Dice against labels and against clicks; bars are standard deviations over seeds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_labels, by_clicks = figure.subplots(1, 2, sharey=True)
    for strategy in sorted(found, key=STRATEGIES.index):
        curve = sorted(found[strategy].items())
        means = [np.mean(point.dice) for _, point in curve]
        bars = [np.std(point.dice, ddof=1) if len(point.dice) > 1 else 0 for _, point in curve]
        style = {"fmt": "o-", "capsize": 3, "label": strategy, "color": f"C{STRATEGIES.index(strategy)}"}
        # strategies a little beside each other, so that bars can be told apart
        shift = 1 + 0.02 * (STRATEGIES.index(strategy) - 2)
        by_labels.errorbar([labels * shift for labels, _ in curve], means, bars, **style)
        by_clicks.errorbar([np.mean(point.clicks) for _, point in curve], means, bars, **style)
    labels = sorted({number for curve in found.values() for number in curve})
    by_labels.set_xscale("log", base=2)
    by_labels.set_xticks(labels, [str(number) for number in labels])
    by_labels.set(xlabel="labelled images", ylabel="mean Dice of test patients")
    by_clicks.set(xlabel="clicks")
    by_labels.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def page_name(slices: int | None) -> str:
    """Name of the page, its plot and its values; labelling slices of images has its own."""
    return "active_learning_slices" if slices else "active_learning"


def page(
    found: dict[str, dict[int, Point]],
    states: dict[Run, dict[str, Any]],
    bundle: str,
    pool: int,
    test: int,
    command: str,
    slices: int | None = None,
) -> str:
    """The page with the table and how it came about."""
    trainings = [training for state in states.values() for training in state["trainings"]]
    kept = sum("not served" in training["result"] for training in trainings)
    minutes = np.mean([training["seconds"] / 60 for training in trainings])
    paragraphs = [
        f"# Choosing what to label: `{bundle}`",
        "What a label is worth when the images to label are chosen by chance, by the model's uncertainty, by how they "
        "differ from the labelled ones or stand for the others, or by both (strategies of the MONAI Label app). Each "
        f"run starts a server of the app on {pool} images without labels and plays an annotator who knows the truth, "
        "through the REST API that viewers use.",
        "* Before there is a trained model he draws a box (2 clicks) for each class on each slice, and the server "
        "segments by published weights; later he is shown the automatic segmentation. For each class and slice whose "
        f"Dice is then below {GOOD_ENOUGH} he draws another box (2 clicks). The label that he submits is the truth. "
        "The clicks are this rule's, not a person's.\n"
        + f"* Of each image he labels {slices} slices, which the server names: only they are learnt from.\n"
        * bool(slices)
        + "* The server trains with the settings it chooses for so many labels, from the weights it serves, and "
        "replaces them only by better ones.\n"
        f"* Dice is the mean over classes and the {test} test patients, none of them in the pool, segmented by the "
        "server from uploaded files with the weights it then serves.\n"
        "* A seed draws the test patients (so strategies are compared within a seed), the random images and the "
        "augmentations. ± is the standard deviation over seeds; differences are paired by seed.",
        table(found).rstrip(),
        f"![Dice against labels and clicks](figures/{page_name(slices)}.png)",
        f"{len(trainings)} trainings of {minutes:.1f} minutes on average; after {kept} of them the server kept the "
        f"weights it had. {describe_machine('cpu')}. `{command}`",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _names(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in STRATEGIES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"there is no strategy {', '.join(unknown)}; the strategies are {', '.join(STRATEGIES)}"
        )
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """Play what is missing, and write page, figures' values and plot after each run."""
    parser = argparse.ArgumentParser(
        description="Compare strategies that choose images to label: Dice against labels and clicks."
    )
    parser.add_argument("--bundle", default="hippocampus", help="bundle of volumes in NIfTI (default: %(default)s)")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the bundle's data")
    parser.add_argument("--strategies", type=_names, default=[name for name in STRATEGIES if name != "first"])
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="default: 0,1,2")
    parser.add_argument(
        "--labels", type=_numbers, default=[3, 6, 12, 24], help="numbers of labels to train with; default: 3,6,12,24"
    )
    parser.add_argument("--slices", type=int, help="slices to label of each image, named by the server (default: all)")
    parser.add_argument("--override", type=override, nargs="+", default=[], metavar="KEY=VALUE", help="config values")
    parser.add_argument(
        "--work", type=Path, default=Path("output/active_learning"), help="for runs (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("docs"), help="for page and plot (default: %(default)s)")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, only write the page of the runs that are there"
    )
    parsed = parser.parse_args(arguments)

    bundle = Path(find_bundle(parsed.bundle)).absolute()
    app = bundle.parents[1] / "monailabel_app"
    given = sys.argv[1:] if arguments is None else arguments
    words = shlex.join(word for word in given if word != "--report")
    command = f"python -m medsaga.experiments.active_learning {words}"
    dataset_dir, work = parsed.dataset_dir.expanduser().absolute(), parsed.work.absolute() / parsed.bundle
    # seed by seed: what is there when it is stopped can be compared
    runs = [Run(strategy, seed) for seed in parsed.seeds for strategy in parsed.strategies]
    if parsed.report:
        runs = [run for run in runs if (work / run.name / "run.json").is_file()]
        if not runs:
            parser.error(f"there is no run of these strategies and seeds in {work}")
    states: dict[Run, dict[str, Any]] = {}
    with tqdm(total=len(runs) * max(parsed.labels), unit="label") as progress:
        for run in runs:
            session = Session(run, bundle, dataset_dir, work, dict(parsed.override), parsed.slices)
            progress.update(len(session.state["labels"]))
            progress.set_postfix_str(run.name)
            if not parsed.report and not session.done(parsed.labels):
                session.play(app, parsed.labels, progress)
            states[run] = session.state
            found = points(states, parsed.labels)
            text = page(found, states, parsed.bundle, len(session.pool), len(session.test), command, parsed.slices)
            name = page_name(parsed.slices)
            plot(found, parsed.output / "figures" / f"{name}.png")
            (parsed.output / f"{name}.md").write_text(text)
            values = {r.name: {"labels": s["labels"], "trainings": s["trainings"]} for r, s in states.items()}
            write_json(parsed.output / f"{name}.json", values)
    print(f"\n{text}\nThis page: {parsed.output / f'{name}.md'}")


if __name__ == "__main__":
    # when this process is ended from outside, it ends its server, as on Ctrl+C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; run the same command again to go on from here"))
    main()
