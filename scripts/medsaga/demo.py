"""``python -m medsaga.demo``: fine-tune, evaluate and segment in a few minutes, and leave a picture and a report.

It runs the commands that a user runs, on the hippocampus bundle with a short schedule, starting from LiteMedSAM's
weights, and prints each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from medsaga.bundle import find_bundle
from medsaga.data import decathlon_datalist, split_by_patient, write_decathlon_phantoms
from medsaga.data.fetch import decathlon_source, fetch

TASK = "Task04_Hippocampus"
# what takes minutes on two cores, and still learns
SCHEDULE = {
    "train#trainer#max_epochs": 10,
    "val_interval": 10,
    "image_size": 56,
    "test_patients": 8,
    "val_patients": 2,
    "image_grid": 4,
}


def sample_data(folder: Path) -> tuple[Path, str]:
    """Sample data and where they are from: downloaded, else $MEDSAGA_DATA, else generated phantoms.

    Args:
        folder: where a download or the phantoms are put.

    Returns:
        Decathlon folder, and a sentence that says what it is.
    """
    try:
        return fetch(decathlon_source(TASK), folder), f"{TASK} of the Medical Segmentation Decathlon, downloaded"
    except (OSError, RuntimeError, ValueError) as err:
        print(f"{TASK} cannot be downloaded here ({err}).", file=sys.stderr)
    local = Path(os.environ.get("MEDSAGA_DATA", "data")).expanduser() / TASK
    if (local / "dataset.json").is_file():
        return local, f"{TASK} from {local.parent} (MEDSAGA_DATA)"
    phantoms = folder / "Phantoms"
    if not (phantoms / "dataset.json").is_file():
        write_decathlon_phantoms(phantoms, cases=24)
    return (
        phantoms,
        f"generated phantoms (no patient's data), because {TASK} cannot be downloaded and is not in MEDSAGA_DATA",
    )


def _monai(command: list[str]) -> float:
    """Run ``python -m monai.bundle``, printing it as a user would type it; return the seconds it took."""
    shown = " ".join(f'"{word}"' if set(word) & set("[#'") else word for word in command)
    print(f"\n$ python -m monai.bundle {shown}\n", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-m", "monai.bundle", *command], check=True)
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def main() -> None:
    """Run the demonstration; exit status 0 when every step has worked."""
    parser = argparse.ArgumentParser(description="Fine-tune, evaluate and segment on sample data in a few minutes.")
    parser.add_argument("--output", default="output/demo", help="folder for everything it makes (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, help="number of epochs to train (default: the few epochs of the demonstration)"
    )
    arguments = parser.parse_args()
    output, epochs = Path(arguments.output).absolute(), arguments.epochs

    start = time.perf_counter()
    bundle = Path(find_bundle("hippocampus"))
    train, evaluate, inference = (str(bundle / "configs" / f"{n}.json") for n in ("train", "evaluate", "inference"))
    data, source = sample_data(output.parent / "data")
    print(f"Sample data: {source}.", flush=True)

    schedule = {**SCHEDULE, **({"train#trainer#max_epochs": epochs} if epochs else {})}
    paths = {
        "dataset_dir": data,
        "output_dir": output,
        "model_path": output / "model.pt",
        "cache_dir": output / "cache",
    }
    options = [word for key, value in {**paths, **schedule}.items() for word in (f"--{key}", str(value))]
    trained = _monai(["run", "training", "--config_file", train, *options])
    evaluated = _monai(["run", "evaluating", "--config_file", f"['{train}','{evaluate}']", *options])

    # the bundle's split, seed 0: a patient that training and selection have not seen
    split = split_by_patient(decathlon_datalist(data), schedule["test_patients"], schedule["val_patients"], 10, seed=0)
    case = Path(split["test"][0]["image"])
    segment = ["--dataset_dir", str(case), "--model_path", str(output / "model.pt")]
    segment += ["--output_dir", str(output), "--image_size", str(schedule["image_size"])]
    segmented = _monai(["run", "evaluating", "--config_file", inference, *segment])

    picture = output / "picture.png"
    shutil.copyfile(output / "evaluation" / f"{case.name.split('.')[0]}.png", picture)
    summary = json.loads((output / "evaluation" / "metrics.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    report = "\n".join(
        [
            "# medsaga demonstration",
            "",
            f"Data: {source}.",
            f"Trained on at most 100 slices of {len(split['train'])} patients from LiteMedSAM's weights, evaluated on "
            f"{summary['mean']['dice']['n']} patients it has not seen (seed 0). A short schedule: the bundle's own "
            "trains longer and gets further. MedSAM's authors may have trained on this data set.",
            "",
            (output / "evaluation" / "metrics.md").read_text(),
            f"Time: training {_duration(trained)}, evaluation {_duration(evaluated)}, one case {_duration(segmented)}, "
            f"all {_duration(time.perf_counter() - start)}. Peak memory of a process: {peak:.1f} GiB.",
            "",
            f"* picture: {picture}",
            f"* every measure of every case: {output / 'evaluation' / 'metrics.csv'}",
            f"* segmentation of {case}: {output / (case.name.split('.')[0] + '_seg.nii.gz')}",
            f"* weights: {output / 'model.pt'}",
            f"* curves: tensorboard --logdir {output / 'tensorboard'}",
        ]
    )
    (output / "report.md").write_text(report + "\n")
    print(f"\n{report}\n\nThis report: {output / 'report.md'}")


if __name__ == "__main__":
    main()
