"""``python -m medsaga.experiments.ranks``: GaLore and LoRA at several ranks, and full AdamW, at an equal schedule.

Each run trains and evaluates a bundle by MONAI's own command, with the bundle's configs and overlays. What has been
evaluated is not run again, and a training that was cut off is resumed, so the command may be killed and repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from medsaga.bundle import find_bundle
from medsaga.machine import describe_machine

from .bundle_run import execute, is_done

__all__ = ["METHODS", "Run", "main"]

METHODS = ("GaLore", "LoRA", "full AdamW")


@dataclass(frozen=True)
class Run:
    """One training: method, rank (None for full AdamW) and seed."""

    method: str
    rank: int | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        rank = "" if self.rank is None else f"_rank{self.rank}"
        return f"{self.method.split()[0].lower()}{rank}_seed{self.seed}"

    @property
    def overlay(self) -> str | None:
        """File of bundles/methods that makes this method of a bundle."""
        return {"GaLore": None, "LoRA": "samed.json", "full AdamW": "full.json"}[self.method]

    @property
    def options(self) -> dict[str, object]:
        """Overrides of the configs."""
        key = {"GaLore": "rank", "LoRA": "network_def#lora#rank"}.get(self.method)
        return {"seed": self.seed} | ({key: self.rank} if key else {})


def plan(ranks: list[int], seeds: list[int]) -> list[Run]:
    """GaLore and LoRA at each rank and full AdamW once, for each seed."""
    runs = [Run(method, rank, seed) for seed in seeds for rank in ranks for method in METHODS[:2]]
    return runs + [Run(METHODS[2], None, seed) for seed in seeds]


def perform(run: Run, bundle: Path, work: Path, options: dict[str, object]) -> None:
    """Train and evaluate in ``work/run.name``, unless that has been done with the same options.

    Raises:
        RuntimeError: when the folder holds a run with other options, or a command fails.
    """
    overlays = [bundle.parent / "methods" / run.overlay] if run.overlay else []
    execute(work / run.name, bundle, overlays, {**options, **run.options}, work / "cache")


@dataclass
class Result:
    """All seeds of one method and rank."""

    dice: list[float]  # of each test patient of each seed, mean over classes
    hd95: list[float]  # mm
    minutes: list[float]
    resumed: bool
    peak_rss: int  # bytes


def results(runs: list[Run], work: Path) -> dict[tuple[str, int | None], Result]:
    """Read what the finished ones among the runs have left, by method and rank."""
    found: dict[tuple[str, int | None], Result] = {}
    for run in runs:
        folder = work / run.name
        if not is_done(folder):
            continue
        content = json.loads((folder / "run.json").read_text())
        result = found.setdefault((run.method, run.rank), Result([], [], [], False, 0))
        with open(folder / "output" / "evaluation" / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        for case in dict.fromkeys(row["case"] for row in rows):
            for measure in ("dice", "hd95"):
                values = np.array([float(row[measure]) for row in rows if row["case"] == case])
                # without a value where a class is missing: such a case is left out
                if not np.isnan(values).all():
                    getattr(result, measure).append(float(np.nanmean(values)))
        result.minutes.append(content["minutes"])
        result.resumed |= content["resumed"]
        result.peak_rss = max(result.peak_rss, content["peak_rss"])
    return found


def table(found: dict[tuple[str, int | None], Result]) -> str:
    """Markdown table of results."""
    lines = [
        "| Method | Rank | Dice | HD95 mm | Test cases | Training minutes | Peak RSS GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    order = sorted(found, key=lambda key: (METHODS.index(key[0]), key[1] or 0))
    for method, rank in order:
        result = found[method, rank]
        scores = [
            f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}" if values else "–"
            for values, digits in ((result.dice, 3), (result.hd95, 2))
        ]
        minutes = f"{'≥ ' if result.resumed else ''}{np.mean(result.minutes):.1f}"
        cells = [method, rank or "–", *scores, len(result.dice), minutes, f"{result.peak_rss / 2**30:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[tuple[str, int | None], Result], path: Path) -> None:
    """Mean Dice against rank, full AdamW as a line across."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for method, colour in zip(METHODS, ("tab:blue", "tab:orange", "tab:grey")):
        ranks = sorted(rank for name, rank in found if name == method and rank is not None)
        means = [np.mean(found[method, rank].dice) for rank in ranks]
        if ranks:
            axes.plot(ranks, means, "o-", color=colour, label=method)
        if (method, None) in found:
            axes.axhline(np.mean(found[method, None].dice), color=colour, linestyle="--", label=method)
    axes.set_xscale("log", base=2)
    ticks = sorted({rank for _, rank in found if rank is not None})
    axes.set_xticks(ticks, [str(rank) for rank in ticks])
    axes.set(xlabel="rank", ylabel="mean Dice of test patients")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, for example image_size=112")
    return key, value


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and write table and plot after each run."""
    parser = argparse.ArgumentParser(
        description="Compare GaLore and LoRA at several ranks, and full AdamW, on one bundle."
    )
    parser.add_argument("--bundle", default="hippocampus", help="default: %(default)s")
    parser.add_argument("--dataset_dir", required=True, help="folder of the bundle's data")
    parser.add_argument("--epochs", type=int, required=True, help="epochs of each training")
    parser.add_argument("--ranks", type=_numbers, default=[4, 16, 64], help="default: 4,16,64")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="default: 0")
    parser.add_argument("--override", type=_override, nargs="+", default=[], metavar="KEY=VALUE", help="config values")
    parser.add_argument("--work", type=Path, default=Path("output/ranks"), help="for the runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="for table and plot (default: %(default)s)")
    parsed = parser.parse_args(arguments)

    bundle = Path(find_bundle(parsed.bundle))
    work = parsed.work.absolute() / parsed.bundle
    options = {
        "dataset_dir": str(Path(parsed.dataset_dir).expanduser().absolute()),
        "train#trainer#max_epochs": parsed.epochs,
        "prompt_probability": 0,  # as LoRA's overlay has it: all methods learn from the same batches
        **dict(parsed.override),
    }
    runs = plan(parsed.ranks, parsed.seeds)
    command = f"python -m medsaga.experiments.ranks {shlex.join(arguments if arguments is not None else sys.argv[1:])}"
    config = {**json.loads((bundle / "configs" / "train.json").read_text()), **options}
    picture = parsed.output / "figures" / f"ranks_{parsed.bundle}.png"
    for run in runs:
        print(f"{run.name}: in {work / run.name}", flush=True)
        perform(run, bundle, work, options)
        found = results(runs, work)
        text = (
            f"# GaLore, LoRA and full AdamW on `{parsed.bundle}`\n\n"
            f"{parsed.epochs} epochs on at most {config['num_slices']} slices of "
            f"{config['train_patients'] or 'all other'} patients, "
            f"{config['test_patients']} test patients, seed {', '.join(map(str, parsed.seeds))}; mean ± standard "
            "deviation over test cases, of each case's mean over classes. Rates are the bundle's, or where they say so "
            "those of LoRA's and AdamW's overlays. ≥: a part of the training before it was resumed is not counted.\n\n"
            f"{table(found)}\n![Dice against rank](figures/{picture.name})\n\n"
            f"{describe_machine('cuda' if torch.cuda.is_available() else 'cpu')}. `{command}`\n"
        )
        plot(found, picture)
        (parsed.output / f"ranks_{parsed.bundle}.md").write_text(text)
    print(f"\n{text}\nThis table: {parsed.output / f'ranks_{parsed.bundle}.md'}")


if __name__ == "__main__":
    main()
