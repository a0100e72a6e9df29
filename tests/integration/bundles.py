"""Bundles as the tests run them: MONAI's own command, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import monai.bundle
import pytest

from medsaga.bundle.errors import root_cause

from .. import forks

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(p.parent.parent.name for p in (ROOT / "bundles").glob("*/configs/metadata.json"))

# the same classes, small enough to train in seconds
SMALL = {"network_def#encoder": "vit_test", "image_size": 64, "weights": None, "num_workers": 0}
# and as a run of two epochs
TWO_EPOCHS = {**SMALL, "train#trainer#max_epochs": 2, "val_interval": 1, "batch_size": 4, "warmup_steps": 2}
# that leaves patients over
FEW_PATIENTS = {**TWO_EPOCHS, "test_patients": 1, "val_patients": 1, "train_patients": 2}


def _small_encoder(bundle: str) -> dict[str, object]:
    network = json.loads((ROOT / "bundles" / bundle / "configs" / "train.json").read_text())["network_def"]
    encoder, size = ("vit_t", 56) if network["encoder"] == "vit_t" else ("vit_test", 64)
    return {"network_def#encoder": encoder, "image_size": size}


# the same kind of encoder as each bundle has, small
ENCODERS = {bundle: _small_encoder(bundle) for bundle in BUNDLES}


def config_files(bundle: str, *names: str) -> list[str]:
    return [str(ROOT / "bundles" / bundle / "configs" / f"{name}.json") for name in names]


def paths(bundle: str, dataset_dir: Path, work: Path) -> dict[str, str]:
    """Overrides that keep everything a run writes out of the repository."""
    return {
        "bundle_root": str(ROOT / "bundles" / bundle),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(work / "output"),
        "cache_dir": str(work / "cache"),
        "model_path": str(work / "model.pt"),
    }


def run(run_id: str, bundle: str, *names: str, **overrides: object) -> None:
    """``python -m monai.bundle run`` without the seconds that a new process takes to import everything."""
    workflow = monai.bundle.ConfigWorkflow(
        config_file=config_files(bundle, *names), run_id=run_id, logging_file=False, workflow_type=None, **overrides
    )
    hook = sys.excepthook
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        sys.excepthook = hook  # a bundle's initialize sets one for its process


def command(run_id: str, bundle: str, *names: str, **overrides: object) -> list[str]:
    """The command line of the same run."""
    files = config_files(bundle, *names)
    words = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id, "--config_file"]
    words.append(files[0] if len(files) == 1 else str(files))
    for key, value in overrides.items():
        words += option(key, value)
    return words


def option(key: str, value: object) -> list[str]:
    """One override on the command line; MONAI drops a plain None there."""
    return [f"--{key}", "$None" if value is None else str(value)]


def start(words: list[str], log: Path, **environment: str) -> forks.Fork:
    log.write_text("")
    return forks.start(words, log, ROOT, {**os.environ, **environment})


def fails(run_id: str, bundle: str, *names: str, **overrides: object) -> str:
    """The message a user reads last."""
    with pytest.raises(Exception) as caught:
        run(run_id, bundle, *names, **overrides)
    return str(root_cause(caught.value))
