"""One run of :mod:`~medsaga.experiments.active_learning`: a server on images without labels, and who labels them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser
from tqdm import tqdm

from medsaga.data import split_by_patient
from medsaga.files import write_json
from medsaga.reading import name_without_suffix

from .annotator import boxes, clicks_to_correct, dice
from .bundle_copy import copy_bundle
from .label_server import LabelServer

__all__ = ["STRATEGIES", "Run", "Session"]

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
                "delete this folder, or choose another one with --work"
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
        said = {"slices": sample["slices"]} if sample.get("slices") else {}  # none where it cannot name any
        named = said.get("slices", range(truth.shape[2]))
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
        shown, truth = shown[..., list(named)], truth[..., list(named)]
        entry = {
            "image": image,
            **said,
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
