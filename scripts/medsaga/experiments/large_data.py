"""``python -m medsaga.experiments.large_data``: how long a training on thousands of volumes takes to its first step.

Writes tiny volumes and runs the hippocampus bundle's own training command on them, to the end of its first step: once
with an empty slice cache, and again. Volumes are tiny because what is measured grows with their number: listing,
checking, finding in the cache, drawing slices, the record of the training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.data import decathlon_datalist
from medsaga.machine import describe_machine
from medsaga.text_table import text_table

from .bundle_run import run_logged

__all__ = ["main", "write_volumes"]

# one step, of a network that takes no time
_ONE_STEP = {
    "network_def#encoder": "vit_test",
    "weights": "$None",
    "image_size": 32,
    # all volumes but those for validation and test, and all slices of them
    "train_patients": "$None",
    "num_slices": "$None",
    "train#trainer#max_epochs": 1,
    "train#trainer#epoch_length": 1,
}


def write_volumes(folder: Path, number: int, shape: tuple[int, int, int] = (16, 16, 8)) -> None:
    """Write a Decathlon folder of labelled volumes of noise, of which each has a file of its own.

    Args:
        folder: with ``dataset.json``, which is written last.
        number: of volumes.
        shape: of each.
    """
    random = np.random.RandomState(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    training = []
    for index in tqdm(range(number), desc="Writing volumes", unit="case", leave=False):
        case = {key: f"{key}sTr/case_{index:05d}.nii.gz" for key in ("image", "label")}
        contents = {"image": random.randint(0, 1000, shape, np.int16), "label": random.randint(0, 3, shape, np.uint8)}
        for key, content in contents.items():
            nib.save(nib.Nifti1Image(content, np.eye(4)), folder / case[key])
        training.append(case)
    (folder / "dataset.json").write_text(json.dumps({"training": training}))


class _Memory(threading.Thread):
    """Watches the resident memory of this process's children, all together; what they share counts once for each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


def _train(data: Path, work: Path) -> tuple[str, ...]:
    """Seconds and CPU seconds to the end of the first step, peak MiB of the training process, and with its workers."""
    config = Path(find_bundle("hippocampus")) / "configs" / "train.json"
    paths = {
        "dataset_dir": data,
        "output_dir": work / "output",
        "model_path": work / "m.pt",
        "cache_dir": work / "cache",
    }
    words = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", str(config)]
    words += [word for key, value in {**paths, **_ONE_STEP}.items() for word in (f"--{key}", str(value))]
    memory = _Memory()
    memory.start()
    before = psutil.Process().cpu_times()
    seconds, peak = run_logged(words, work / "log.txt")
    memory.ended.set()
    memory.join()
    after = psutil.Process().cpu_times()
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{seconds:.1f}", f"{computed:.1f}", f"{peak / 2**20:.0f}", f"{memory.peak / 2**20:.0f}"


def main() -> None:
    """Run the measurement and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=10_000, help="number of volumes (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder in which volumes and cache are kept (default: temporary)")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="medsaga-large-"))
    try:
        data = work / "volumes"
        if not (data / "dataset.json").is_file():
            write_volumes(data, arguments.volumes)
        start = time.perf_counter()
        number = len(decathlon_datalist(data))
        rows = [(f"list {number} cases", f"{time.perf_counter() - start:.1f}", "", "", "")]
        first = "with the cache of before" if (work / "cache").exists() else "empty cache"
        for what in (f"first training, {first}", "second training", "third training"):
            rows.append((what, *_train(data, work)))
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(text_table(("to the end of the first step", "s", "CPU s", "peak MiB, process", "with workers"), rows))
    print(f"\n{describe_machine('cpu')}")


if __name__ == "__main__":
    main()
