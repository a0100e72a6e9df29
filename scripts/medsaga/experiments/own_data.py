"""From a folder to a first score: ``python -m medsaga.experiments.own_data FOLDER [FOLDER ...]``.

For each folder the commands that ``python -m medsaga.bundle create`` prints: create, train, evaluate, segment; then
verify, and the app's server, which has to list the model and to segment an image. Nothing is edited in between.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from medsaga.data.case import files_of
from medsaga.machine import describe_machine
from medsaga.reading import name_without_suffix
from medsaga.text_table import text_table

from .bundle_run import run_logged
from .label_server import LabelServer

__all__ = ["main"]

_STEPS = ("create", "train", "evaluate", "segment", "verify", "serve")


def main() -> None:
    """Run all folders and print the table."""
    parser = argparse.ArgumentParser(
        description="Measure the time from a folder of images and labels to a first score."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder, FOLDER=NAME or table")
    parser.add_argument("--epochs", type=int, default=2, help="epochs to train (default: %(default)s)")
    parser.add_argument("--app", type=Path, default=Path("monailabel_app"), help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("output/own_data"), help="(default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], help="further option for create, such as --flip")
    arguments = parser.parse_args()
    rows = []
    for folder in tqdm(arguments.folders, desc="data sets", unit="set"):
        path, _, name = str(folder).partition("=")
        name = name or re.sub(r"\W+", "_", Path(path).stem).lower()
        rows.append(_Run(name, Path(path).absolute(), arguments).row())
        tqdm.write(" ".join(rows[-1]))
    print(f"\n{text_table(('data', 'cases', *(f'{step} (s)' for step in _STEPS), 'first score (min)', 'Dice'), rows)}")
    print(f"\n{arguments.epochs} epochs; {describe_machine('cpu')}")


class _Run:
    def __init__(self, name: str, data: Path, arguments: argparse.Namespace) -> None:
        self.name, self.data, self.arguments = name, data, arguments
        self.work = arguments.work.absolute() / name
        shutil.rmtree(self.work, ignore_errors=True)
        self.bundle = self.work / "bundles" / name
        self.bundle.parent.mkdir(parents=True)
        self.log = self.work / "log.txt"

    def row(self) -> list[str]:
        """Seconds of each step, or what failed."""
        seconds: list[float] = []
        for step in _STEPS:
            start = time.perf_counter()
            try:
                getattr(self, step)()
            except Exception as err:
                print(f"{self.name}: {step} failed.\n{err}", file=sys.stderr)
                return [self.name, "", *(f"{s:.0f}" for s in seconds), f"{step} failed"]
            seconds.append(time.perf_counter() - start)
        scores = self.bundle / "output" / "evaluation" / "metrics.json"
        dice = json.loads(scores.read_text())["mean"]["dice"] if scores.is_file() else None
        return [
            self.name,
            str(len(self._datalist())),
            *(f"{s:.0f}" for s in seconds),
            f"{sum(seconds[:3]) / 60:.1f}",
            f"{dice['mean']:.3f} (N={dice['n']})" if dice else "no test patient",
        ]

    def _python(self, *words: Any) -> None:
        run_logged([sys.executable, "-W", "ignore", "-m", *map(str, words)], self.log, self.work)

    def _monai(self, run_id: str, *configs: str, **options: Any) -> None:
        files = str([str(self.bundle / "configs" / f"{name}.json") for name in configs])
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        self._python("monai.bundle", "run", run_id, "--config_file", files, *words)

    def _config(self, name: str) -> ConfigParser:
        config = ConfigParser()
        config.read_config(str(self.bundle / "configs" / f"{name}.json"))
        return config

    def _datalist(self) -> list[dict[str, Any]]:
        return self._config("train").get_parsed_content("datalist")

    def _images(self) -> list[str]:
        """Files of the first case's image."""
        return files_of({"image": self._datalist()[0]["image"]})

    def create(self) -> None:
        options = [word for option in self.arguments.option for word in option.split()]
        self._python("medsaga.bundle", "create", self.name, "--data", self.data, "--output", self.bundle, *options)

    def train(self) -> None:
        self._monai("training", "train", **{"train#trainer#max_epochs": self.arguments.epochs, "val_interval": 1})

    def evaluate(self) -> None:
        if self._config("train").get_parsed_content("parts")["test"]:  # of one patient there is none
            self._monai("evaluating", "train", "evaluate")

    def segment(self) -> None:
        self._monai("evaluating", "inference", dataset_dir=self._images()[0])
        masks = [p for p in (self.bundle / "output" / "predictions").rglob("*_seg.*") if p.is_file()]
        if len(masks) != 1:
            raise RuntimeError(f"{self.bundle / 'output' / 'predictions'} has {len(masks)} masks, not 1")

    def verify(self) -> None:
        self._python("medsaga.bundle", "verify", self.bundle)

    def serve(self) -> None:
        images = [Path(path) for path in self._images()]
        studies = self.work / "studies"
        studies.mkdir()
        files = [path for path in images if path.is_file()]  # a DICOM series is had from a DICOM store
        for path in files:
            shutil.copy(path, studies)
        with LabelServer(self.arguments.app.absolute(), studies, self.bundle, self.log) as server:
            known = server.models()
            if not {self.name, f"{self.name}_prompt"} <= set(known):
                raise RuntimeError(f"the server lists the models {', '.join(known)}, not {self.name}")
            if files and not server.infer_file(self.name, name_without_suffix(images[0])):
                raise RuntimeError(f"the answer of {self.name} is an empty file")


if __name__ == "__main__":
    main()
