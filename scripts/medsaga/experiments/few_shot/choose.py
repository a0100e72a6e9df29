"""Which method suits a bundle's data: cross-validated over its labelled patients."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from medsaga.bundle.methods import METHODS, OF_VOLUMES, TEACHER_OF
from medsaga.bundle.root import bundle_folder
from medsaga.data.case import patient_of
from medsaga.files import replacing, write_json
from medsaga.memory import Setup

from ..bundle_run import execute

__all__ = ["choose", "folds_of", "recommended"]

logger = logging.getLogger(__name__)


def choose(
    bundle: str | Path,
    work: Path,
    folds: int = 3,
    methods: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> Path:
    """Train each method on all folds but one and score it on that one, for each fold; write a page that recommends one.

    The folds are of the bundle's training and validation patients: its test patients take no part, so what is chosen
    can still be scored on them once. Within a training no patient is held out, and the last epoch counts. What is done
    is not run again.

    Args:
        bundle: folder of the bundle, or its name.
        work: folder of the runs and of the page.
        folds: number of folds.
        methods: names of ``METHODS``; all that the data allow unless given.
        options: values of config keys, for all runs.

    Returns:
        the page, ``choice.md``; beside it are ``choice.csv`` and ``choice.png``.

    Raises:
        ValueError: an unknown method, or fewer patients than folds.
        RuntimeError: a run fails, with the end of its log.
    """
    folder, options = bundle_folder(bundle).absolute(), dict(options or {})
    config = Setup(str(folder), overrides=options).parser()
    parts = config.get_parsed_content("parts")
    names = list(methods) or [name for name in METHODS if name not in OF_VOLUMES or config["plane"] is not None]
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"there is no method {', '.join(unknown)}; the methods are {', '.join(METHODS)}")
    splits = folds_of({patient_of(case) for case in parts["train"] + parts["validation"]}, folds, config["seed"])
    frames = []
    with tqdm(total=len(splits) * len(names), desc=f"methods for {folder.name}", unit="run") as progress:
        for number, split in enumerate(splits):
            path = work / f"fold{number}.json"
            # a method that learns from images without labels must not take those of test patients
            write_json(path, {**split, "kept_out": sorted({patient_of(case) for case in parts["test"]})})
            for name in names:
                progress.set_postfix_str(f"{name}, fold {number + 1}")
                given = {**options, "split": str(path)}
                if teacher := TEACHER_OF.get(name):
                    given["teacher"] = str(_run(teacher, number, folder, work, given) / "model.pt")
                own = _run(name, number, folder, work, given)
                rows = pd.read_csv(own / "output" / "evaluation" / "metrics.csv")
                minutes = json.loads((own / "run.json").read_text())["minutes"]
                frames.append(rows.assign(method=name, fold=number, minutes=minutes))
                progress.update()
    return _write(pd.concat(frames, ignore_index=True), names, work, folder)


def _run(name: str, fold: int, bundle: Path, work: Path, options: Mapping[str, object]) -> Path:
    """Train and evaluate a method on a fold, unless that is done; the folder of the run."""
    own = work / f"{name.replace(' ', '_').lower()}_fold{fold}"
    own.mkdir(parents=True, exist_ok=True)
    execute(own, bundle, [bundle.parent / "methods" / file for file in METHODS[name]], options, work / "cache")
    return own


def folds_of(patients: set[str], folds: int, seed: int) -> list[dict[str, list[str]]]:
    """Splits whose ``test`` patients are each patient once.

    Raises:
        ValueError: fewer than two folds, or fewer patients than folds.
    """
    if not 2 <= folds <= len(patients):
        raise ValueError(
            f"{len(patients)} labelled patients cannot be split into {folds} folds; there must be 2 or more folds, and "
            "each needs a patient"
        )
    order = np.random.RandomState(seed).permutation(sorted(patients)).tolist()
    return [
        {"train": [name for name in order if name not in order[i::folds]], "validation": [], "test": order[i::folds]}
        for i in range(folds)
    ]


def recommended(cases: pd.DataFrame, methods: Sequence[str]) -> tuple[str, str]:
    """The method to take, and why.

    A method other than the first is recommended only if it is better by more than the standard error of the difference,
    paired by case. If the methods do not differ, the first is preferred, because everything else here is made for it.

    Args:
        cases: Dice, a row a case, a column a method.
        methods: the order.
    """
    means = cases[list(methods)].mean()
    best, first = str(means.idxmax()), methods[0]
    if best == first:
        return first, "it has the highest mean Dice"
    difference = (cases[best] - cases[first]).dropna()
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    gain = f"{best} is above {first} by {difference.mean():.3f} ± {error:.3f} (standard error, paired by case)"
    if difference.mean() > error:
        return best, gain
    return first, f"{gain}: no more than chance"


def _write(rows: pd.DataFrame, names: Sequence[str], work: Path, folder: Path) -> Path:
    rows.to_csv(work / "choice.csv", index=False, float_format="%.5g")
    by_case = rows.groupby(["method", "fold", "case"], as_index=False)[["dice", "hd95"]].mean()
    cases = by_case.pivot(index=["fold", "case"], columns="method", values="dice")
    minutes = rows.drop_duplicates(["method", "fold"]).groupby("method")["minutes"].mean()
    lines = ["| Method | Dice | HD95 (mm) | minutes of a training |", "|---|---|---|---|"]
    for name in names:
        own = by_case[by_case["method"] == name]
        lines.append(
            f"| {name} | {own['dice'].mean():.3f} ± {own['dice'].std(ddof=0):.3f} | {own['hd95'].mean():.1f} | "
            f"{minutes[name]:.1f} |"
        )
    method, why = recommended(cases, names)
    command = _command(folder.name, method)
    if teacher := TEACHER_OF.get(method):
        weights = "output/teacher.pt"
        command = f"{_command(folder.name, teacher)} --model_path {weights}\n{command} --teacher {weights}"
    _draw(cases[list(names)], work / "choice.png")
    page = work / "choice.md"
    page.write_text(
        f"# Methods for {folder.name}\n\nMean ± standard deviation over {len(cases)} cases of {rows['fold'].nunique()} "
        "folds, each scored by a network that has not seen its patient; test patients took no part.\n\n"
        + "\n".join(lines)
        + f"\n\nRecommended: **{method}**, because {why}.\n\n```bash\n{command}\n```\n"
    )
    return page


def _command(bundle: str, method: str) -> str:
    files = [f"bundles/{bundle}/configs/train.json", *(f"bundles/methods/{file}" for file in METHODS[method])]
    return f'python -m monai.bundle run training --config_file "{files}"'


def _draw(cases: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(1.5 + 1.3 * len(cases.columns), 3.5), layout="constrained")
    axes = figure.subplots()
    axes.boxplot([cases[name].dropna() for name in cases], tick_labels=list(cases))
    axes.set(ylabel="Dice, a point a case")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
