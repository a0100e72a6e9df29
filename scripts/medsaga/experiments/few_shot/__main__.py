"""The command."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from medsaga.bundle.methods import METHODS
from medsaga.machine import describe_machine

from ..bundle_run import is_done
from ..overrides import override
from .choose import choose
from .execution import work_off
from .figures import draw_cases, draw_dice, draw_losses
from .plan import Experiment, Run, read_experiment
from .results import collect, costs_table, seeds_table, table

__all__ = ["main"]


def write_page(experiment: Experiment, work: Path, output: Path, name: str, command: str) -> Path | None:
    """Tables, figures and values of what is done so far; None before the first run is."""
    rows = collect(experiment.runs, work)
    if rows.empty:
        return None
    figures = output / "figures"
    output.mkdir(parents=True, exist_ok=True)
    rows.to_csv(output / f"{name}.csv", index=False, float_format="%.5g")
    draw_dice(rows, experiment.methods, figures / f"{name}_dice.png")
    parts = [
        f"# {experiment.title}",
        _data_sentence(rows),
        "Dice / HD95 (mm): mean ± standard deviation over test cases (and seeds), of each case's mean over classes. "
        "The best Dice of a line is bold.",
        table(rows, experiment.methods).rstrip(),
    ]
    if seeds := seeds_table(rows, experiment.methods):
        parts += ["Where there are several seeds:", seeds.rstrip()]
    parts.append(f"![Dice against training images](figures/{name}_dice.png)")
    if experiment.loss_curves and draw_losses(
        experiment.runs, experiment.loss_curves, work, figures / f"{name}_losses.png"
    ):
        parts.append(f"![Training losses](figures/{name}_losses.png)")
    # not beside the page: they show patients, and a page may be given to others
    if pictures := draw_cases(experiment, rows, work):
        names = ", ".join(f"`{path.name}`" for path in pictures)
        parts.append(f"Best, median and worst cases, as pictures: {names} in the experiment's folder of `--work`.")
    parts += [
        "What a training takes (the largest peak of resident memory; runs that shared the machine took longer):",
        costs_table(rows, experiment.methods).rstrip(),
        *([experiment.note] if experiment.note else []),
        f"{describe_machine('cuda' if torch.cuda.is_available() else 'cpu')}. `{command}`; all values are in "
        f"[{name}.csv]({name}.csv).",
    ]
    page = output / f"{name}.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def _data_sentence(rows: pd.DataFrame) -> str:
    tests = rows.groupby("bundle")["case"].nunique()
    seeds = ", ".join(str(seed) for seed in sorted(rows["seed"].unique()))
    counts = ", ".join(f"{count} of {bundle}" for bundle, count in tests.items())
    return f"Test cases, none of whose patients was trained on: {counts}. Seeds: {seeds}."


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and write the page after each run."""
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.experiments.few_shot",
        description="Compare methods by the number of images that they learn from. You can stop the command and run it "
        "again, and several processes may work on one experiment. Data sets are looked for in $MEDSAGA_DATA.",
    )
    parser.add_argument(
        "experiment", type=Path, help="JSON file like those in bundles/methods/experiments; a bundle with --choose"
    )
    parser.add_argument("--work", type=Path, default=Path("output/few_shot"), help="for the runs (%(default)s)")
    parser.add_argument("--choose", action="store_true", help="recommend a method for the bundle, by cross-validation")
    parser.add_argument("--folds", type=int, default=3, help="number of folds of --choose (%(default)s)")
    parser.add_argument("--methods", nargs="+", default=[], choices=METHODS, help="methods of --choose (default: all)")
    parser.add_argument(
        "--override", type=override, nargs="+", default=[], metavar="KEY=VALUE", help="config values for --choose"
    )
    parser.add_argument("--output", type=Path, default=Path("docs"), help="for the page (%(default)s)")
    parser.add_argument("--slurm", type=int, metavar="JOBS", help="run in this number of jobs on a SLURM cluster")
    parser.add_argument("--slurm_options", nargs="+", default=[], metavar="KEY=VALUE", help="submitit's options")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it names each file of losses that it has read

    if parsed.choose:
        work = parsed.work.absolute() / f"choose_{parsed.experiment.name}"
        page = choose(parsed.experiment, work, parsed.folds, parsed.methods, dict(parsed.override))
        print(f"\n{page.read_text()}\nThis page: {page}")
        return
    experiment = read_experiment(parsed.experiment)
    name = parsed.experiment.stem
    work = parsed.work.absolute() / name
    words = shlex.join(arguments if arguments is not None else sys.argv[1:])
    command = f"python -m medsaga.experiments.few_shot {words}"
    if parsed.slurm:
        from .cluster import submit  # submitit is an extra

        submit(experiment, work, parsed.slurm, dict(option.split("=", 1) for option in parsed.slurm_options))
        return
    page = write_page(experiment, work, parsed.output, name, command)
    done = {run for run in experiment.runs if is_done(work / run.name)}  # they are on the page
    with tqdm(total=len(experiment.runs), desc=experiment.title, unit="run") as progress:

        def show(run: Run) -> None:
            nonlocal page
            progress.set_postfix_str(run.name)
            progress.update()
            if run not in done:
                page = write_page(experiment, work, parsed.output, name, command)

        failed = work_off(experiment.runs, work, show)
    if page:
        print(f"\n{page.read_text()}\nThis page: {page}; pictures of cases and the runs: {work}")
    if failed:
        reasons = "\n".join(f"* {run.name}: {reason}" for run, reason in failed.items())
        sys.exit(f"{len(failed)} of {len(experiment.runs)} runs failed:\n{reasons}")


if __name__ == "__main__":
    main()
