"""``python -m medsaga.experiments.federated``: sites that keep their images, each alone, together, and in one place.

Each site is a process with a ``MonaiAlgo`` client, as a federated system calls it; this process averages.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor
from tqdm import tqdm

from medsaga.bundle.root import bundle_folder
from medsaga.data.case import patient_of
from medsaga.federated import averaged, site
from medsaga.files import replacing, write_json
from medsaga.machine import describe_machine
from medsaga.memory import Setup
from medsaga.processes import process_context
from medsaga.text_table import text_table

from .bundle_run import evaluate, execute
from .overrides import override

__all__ = ["Sites", "federated", "main"]


@dataclass(frozen=True)
class Sites:
    """Who trains together, and how.

    Attributes:
        bundle: folder of the bundle.
        splits: a file for each site with its patients, all with the same test patients.
        rounds: how often weights are exchanged.
        local_epochs: epochs of a site in a round.
        options: values of config keys, for all.
        work: folder for runs.
    """

    bundle: Path
    splits: list[Path]
    rounds: int
    local_epochs: int
    options: dict[str, Any]
    work: Path


def federated(sites: Sites) -> tuple[dict[str, Tensor], float]:
    """Train in rounds.

    Returns:
        The weights, and the mean of the megabytes that a site sends in a round.

    Raises:
        RuntimeError: a site's process ends before the last round; it has printed why.
    """
    context = process_context()
    pipes, processes = [], []
    for number, split in enumerate(sites.splits):
        folder = sites.work / f"site{number}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"output_dir": folder / "output", "model_path": folder / "model.pt", "cache_dir": sites.work / "cache"}
        options = {**sites.options, "split": str(split), **{key: str(path) for key, path in paths.items()}}
        ours, theirs = context.Pipe()
        arguments = (theirs, str(sites.bundle), f"site{number}", sites.rounds, sites.local_epochs, options)
        processes.append(context.Process(target=_site, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    # all begin with the first site's weights, because parts that are not published start from random numbers
    weights, *_ = [_received(number, pipe) for number, pipe in enumerate(pipes)]
    sent = 0
    for _ in tqdm(range(sites.rounds), desc="federated", unit="round"):
        for pipe in pipes:
            pipe.send(weights)
        differences, sizes = zip(*(_received(number, pipe) for number, pipe in enumerate(pipes)))
        sent += sum(value.nbytes for changed in differences for value in changed.values())
        weights = averaged(weights, differences, sizes)
    for pipe, process in zip(pipes, processes):
        pipe.send(None)
        process.join()
    return weights, sent / 1e6 / sites.rounds / len(pipes)


def _received(number: int, pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError as error:
        raise RuntimeError(f"site {number + 1} has ended; its last output says why") from error


def _site(pipe: Connection, bundle: str, name: str, rounds: int, local_epochs: int, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    algo = site(bundle, name, rounds, local_epochs, **options)
    pipe.send({key: value.detach().cpu().clone() for key, value in algo.trainer.network.state_dict().items()})
    while (weights := pipe.recv()) is not None:
        algo.train(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS))
        pipe.send((algo.get_weights().weights, len(algo.trainer.data_loader.dataset)))


def _splits(parts: Mapping[str, list[dict]], count: int, patients: int, work: Path) -> list[Path]:
    """A file for each site, and one for all in one place."""
    names = sorted({patient_of(case) for case in parts["train"]})
    if len(names) < count * patients:
        raise SystemExit(f"{len(names)} patients to train on are too few for {count} sites with {patients} each")
    test = sorted({patient_of(case) for case in parts["test"]})
    groups = [names[i * patients : (i + 1) * patients] for i in range(count)]
    paths = []
    for name, train in [*((f"site{i}", group) for i, group in enumerate(groups)), ("all", names[: count * patients])]:
        paths.append(work / f"{name}.json")
        write_json(paths[-1], {"train": train, "validation": [], "test": test})
    return paths


def main(arguments: list[str] | None = None) -> None:
    """Train each site alone, all together and all in one place, and print the table."""
    parser = argparse.ArgumentParser(description="Federated training of a bundle, sites in processes of this machine.")
    parser.add_argument("--bundle", default="hippocampus", help="name or folder (default: %(default)s)")
    parser.add_argument("--sites", type=int, default=2, help="number of sites (default: %(default)s)")
    parser.add_argument("--patients", type=int, default=5, help="patients of each site (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--local_epochs", type=int, default=2, help="epochs in a round (default: %(default)s)")
    parser.add_argument("--override", type=override, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("output/federated"), help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    bundle, work, options = bundle_folder(given.bundle).absolute(), given.work.absolute(), dict(given.override)
    parts = Setup(str(bundle), overrides=options).parser().get_parsed_content("parts")
    *splits, everything = _splits(parts, given.sites, given.patients, work)
    epochs = given.rounds * given.local_epochs
    alone = {**options, "train#trainer#max_epochs": epochs, "val_interval": epochs}
    rows = []
    for name, split in [
        *((f"site {i + 1} alone", path) for i, path in enumerate(splits)),
        ("in one place", everything),
    ]:
        folder = work / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        execute(folder, bundle, [], {**alone, "split": str(split)}, work / "cache")
        rows.append([name, *_scores(folder), "–"])
    start = time.monotonic()
    weights, megabytes = federated(Sites(bundle, splits, given.rounds, given.local_epochs, options, work))
    folder = work / "federated"
    folder.mkdir(exist_ok=True)
    with replacing(folder / "model.pt") as temporary:
        torch.save(weights, temporary)
    evaluate(folder, bundle, [], {**options, "split": str(everything)}, work / "cache")
    rows.append(["federated", *_scores(folder), f"{megabytes:.1f}"])
    print(text_table(["training", "Dice", "HD95 (mm)", "MB a site sends in a round"], rows))
    print(
        f"\n{given.sites} sites with {given.patients} patients each, {given.rounds} rounds of {given.local_epochs} "
        f"epochs ({time.monotonic() - start:.0f} s for the federated one). {describe_machine('cpu')}"
    )


def _scores(folder: Path) -> list[str]:
    mean = json.loads((folder / "output" / "evaluation" / "metrics.json").read_text())["mean"]
    distance = mean["hd95"]["mean"]  # None where nothing was segmented
    dice = f"{mean['dice']['mean']:.3f} ± {mean['dice']['std']:.3f}"
    return [dice, "–" if distance is None else f"{distance:.1f}"]


if __name__ == "__main__":
    main()
