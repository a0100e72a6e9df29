"""``python -m medsaga.experiments.active_learning``: what a label is worth, by how the images to label are chosen.

Each run is a server of the app on images without labels, and an annotator who knows the truth: he asks for the next
image, corrects what he is shown and submits it; at some numbers of labels the server trains. What has been done is not
done again, so the command may be killed and repeated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.data import split_by_patient
from medsaga.files import write_json
from medsaga.reading import name_without_suffix

from .annotator import GOOD_ENOUGH, boxes, clicks_to_correct, dice
from .bundle_copy import copy_bundle
from .label_server import LabelServer
from .machine import describe_machine
from .overrides import override

__all__ = ["STRATEGIES", "Run", "main"]

STRATEGIES = ("random", "first", "entropy", "disagreement", "diversity", "representative", "mixed")


@dataclass(frozen=True)
class Run:
    """One strategy with one seed, which draws the test patients, and the random images and augmentations."""

    strategy: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.strategy}_seed{self.seed}"


class Session:
    """A run's folder: datastore, copy of the bundle, server's log and ``run.json`` with what has been done.

    Args:
        run: which one.
        bundle: folder of the bundle.
        dataset_dir: folder of the bundle's data.
        work: for the folder.
        options: overrides of the bundle's configs, in the copy.
        slices: how many slices of each image are labelled, of those that the server names; None labels all.

    Raises:
        RuntimeError: the folder holds a run with other options.
    """

    def __init__(
        self,
        run: Run,
        bundle: Path,
        dataset_dir: Path,
        work: Path,
        options: dict[str, Any],
        slices: int | None = None,
    ) -> None:
        self.run = run
        self.slices = slices
        self.folder = work / run.name
        self.options = {**options, "seed": run.seed}
        self.bundle = copy_bundle(bundle, self.folder / bundle.name, self.options)
        config = ConfigParser()
        config.read_config(str(self.bundle / "configs" / "train.json"))
        config["dataset_dir"] = str(dataset_dir)
        self.class_names: list[str] = config.get_parsed_content("class_names")
        test = config.get_parsed_content("test_patients")
        split = split_by_patient(config.get_parsed_content("datalist"), test, 0, None, run.seed)
        self.pool = {name_without_suffix(case["image"]): case for case in split["train"]}
        self.test = split["test"]
        self._read()
        (self.folder / "studies").mkdir(exist_ok=True)
        for case in self.pool.values():
            copy = self.folder / "studies" / Path(case["image"]).name
            if not copy.is_file():
                shutil.copy(case["image"], copy)

    def _read(self) -> None:
        path = self.folder / "run.json"
        asked = {"slices": self.slices} if self.slices else {}
        self.state: dict[str, Any] = {"options": self.options, **asked, "labels": [], "trainings": []}
        if path.is_file():
            self.state = json.loads(path.read_text())
        else:  # before the run, so that one that was cut off does not go on with other options
            self._write()
        found, wanted = (self.state["options"], self.state.get("slices")), (self.options, self.slices)
        if found != wanted:
            raise RuntimeError(
                f"{self.folder} holds a run with {found[0]} and slices {found[1]}, not {wanted[0]} and {wanted[1]}: "
                "delete it, or choose another folder with --work"
            )

    def _write(self) -> None:
        write_json(self.folder / "run.json", self.state)

    def done(self, labels: Sequence[int]) -> bool:
        """Whether it has been trained and tested with each of these numbers of labels."""
        return {t["labels"] for t in self.state["trainings"] if "dice" in t} >= set(labels)

    def play(self, app: Path, labels: Sequence[int], progress: tqdm) -> None:
        """Label, train and test up to the largest of ``labels``, going on from what has been done."""
        with LabelServer(app, self.folder / "studies", self.bundle, self.folder / "server.log") as server:
            labelled = server.labelled()
            for entry in self.state["labels"]:
                if entry["image"] not in labelled:  # it was killed before this one was submitted
                    self._submit(server, entry)
            for target in sorted(labels):
                while len(self.state["labels"]) < target:
                    self._label_next(server)
                    progress.update()
                self._train(server, target, progress)

    def _label_next(self, server: LabelServer) -> None:
        asked = {"slices": self.slices} if self.slices else {}
        sample = server.next_sample(self.run.strategy, seed=self.run.seed, budget=600, **asked)
        image = sample["id"]
        truth = _class_numbers(self.pool[image]["label"])
        named = sample.get("slices", list(range(truth.shape[2])))
        start, clicks = time.perf_counter(), 0
        if self.state["trainings"]:
            shown = server.infer(server.model, image)
        else:
            shown = np.zeros_like(truth)
            for number, name in enumerate(self.class_names[1:], start=1):
                for box in (box for box in boxes(truth, number) if box[-1] in named):
                    # an annotator draws each class's boxes afresh, also where an earlier class was found too large
                    mask = server.infer(f"{server.model}_prompt", image, roi=box, label=name, replace=True)
                    shown[..., box[-1]][mask[..., box[-1]] > 0] = number
                    clicks += 2
        shown, truth = shown[..., named], truth[..., named]
        entry = {
            "image": image,
            **({"slices": named} if self.slices else {}),
            "strategy_used": sample["strategy_used"],
            "clicks": clicks + clicks_to_correct(shown, truth, len(self.class_names)),
            "dice_shown": _mean_dice(shown, truth, len(self.class_names)),
            "seconds": time.perf_counter() - start,
        }
        self.state["labels"].append(entry)
        self._write()
        self._submit(server, entry)

    def _submit(self, server: LabelServer, entry: dict[str, Any]) -> None:
        said = {"labelled_slices": entry["slices"]} if "slices" in entry else {}
        server.save_label(entry["image"], Path(self.pool[entry["image"]]["label"]), **said)

    def _train(self, server: LabelServer, target: int, progress: tqdm) -> None:
        training = next((t for t in self.state["trainings"] if t["labels"] == target), None)
        if training is None:
            progress.set_postfix_str(f"{self.run.name}: training on {target} labels")
            start = time.perf_counter()
            stats = server.train()
            training = {"labels": target, "seconds": time.perf_counter() - start, "result": stats.get("message", "")}
            self.state["trainings"].append(training)
            self._write()
        if "dice" not in training:
            progress.set_postfix_str(f"{self.run.name}: testing with {target} labels")
            training["dice"] = [
                _mean_dice(
                    server.infer(server.model, Path(case["image"])),
                    _class_numbers(case["label"]),
                    len(self.class_names),
                )
                for case in self.test
            ]
            self._write()


def _class_numbers(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).astype(np.uint8)


def _mean_dice(mask: np.ndarray, truth: np.ndarray, classes: int) -> float:
    return float(np.mean([dice(mask == c, truth == c) for c in range(1, classes)]))


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
        "![Dice against labels and clicks](figures/active_learning.png)",
        f"{len(trainings)} trainings of {minutes:.1f} minutes on average; after {kept} of them the server kept the "
        f"weights it had. {describe_machine('cpu')}. `{command}`",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _names(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in STRATEGIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no strategy {', '.join(unknown)}; known are {', '.join(STRATEGIES)}")
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """Play what is missing, and write page, figures' values and plot after each run."""
    parser = argparse.ArgumentParser(description="Dice against labels and clicks, by how images are chosen.")
    parser.add_argument("--bundle", default="hippocampus", help="of volumes in NIfTI (default: %(default)s)")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the bundle's data")
    parser.add_argument("--strategies", type=_names, default=[name for name in STRATEGIES if name != "first"])
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="default: 0,1,2")
    parser.add_argument("--labels", type=_numbers, default=[3, 6, 12, 24], help="where to train; default: 3,6,12,24")
    parser.add_argument("--slices", type=int, help="to label of each image, which the server names; all unless given")
    parser.add_argument("--override", type=override, nargs="+", default=[], metavar="KEY=VALUE", help="of the configs")
    parser.add_argument("--work", type=Path, default=Path("output/active_learning"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="for page and plot (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="write the page of what has been done, and run nothing")
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
            plot(found, parsed.output / "figures" / "active_learning.png")
            (parsed.output / "active_learning.md").write_text(text)
            values = {r.name: {"labels": s["labels"], "trainings": s["trainings"]} for r, s in states.items()}
            write_json(parsed.output / "active_learning.json", values)
    print(f"\n{text}\nThis page: {parsed.output / 'active_learning.md'}")


if __name__ == "__main__":
    # ended from outside it ends its server, as it does on Ctrl+C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on from here"))
    main()
