"""Training by torchrun, two processes on a CPU, of which one dies on the way."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

from ..waiting import until
from .bundles import ROOT, SMALL, config_files, option, paths, run

EPOCHS = 8
SHORT = {
    **SMALL,
    "val_interval": 1,
    "batch_size": 2,
    "test_patients": 2,
    "val_patients": 2,
    "train_patients": 4,
    "num_slices": 8,
    "warmup_steps": 1,
    "save_seconds": 0,
    "device": "$torch.device('cpu')",
}


def start(log: Path, names: Sequence[str], overrides: Mapping[str, object]) -> subprocess.Popen:
    """Two processes train by these configs."""
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["--max-restarts=1", "-m", "monai.bundle", "run", "training", "--config_file"]
    words.append(str(config_files("hippocampus", *names)))
    words += [word for key, value in overrides.items() for word in option(key, value)]
    with open(log, "w") as output:
        # with torchrun's own store, of which each start finds the former one's addresses, no restart succeeds
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, env=environment)


def test_two_processes_train_one_model_and_go_on_when_one_is_killed(phantoms, tmp_path):
    overrides = {**SHORT, **paths("hippocampus", phantoms, tmp_path), "train#trainer#max_epochs": EPOCHS}
    state, log = tmp_path / "output" / "last.pt", tmp_path / "log"
    process = start(log, ("train", "multi_gpu_train"), {**overrides, "resume": "true"})
    until(state.is_file, 600, process, lambda: log.read_text()[-3000:])
    workers = [child for child in psutil.Process(process.pid).children() if "monai.bundle" in " ".join(child.cmdline())]
    assert len(workers) == 2, log.read_text()[-3000:]
    os.kill(workers[1].pid, signal.SIGKILL)
    assert process.wait(600) == 0, log.read_text()[-3000:]
    said = log.read_text()
    assert said.count("Resumed after epoch") >= 1, said[-3000:]
    last = torch.load(state, weights_only=True)
    # 8 slices, 2 a process: 2 steps an epoch
    assert last["progress"] == {"epoch": EPOCHS, "iteration": 2 * EPOCHS}
    assert not any(key.startswith("module.") for key in last["network"])
    assert (tmp_path / "model.pt").is_file()


def test_one_of_two_processes_writes_the_labels_of_a_teacher(phantoms, tmp_path):
    overrides = {**SHORT, **paths("hippocampus", phantoms, tmp_path), "train#trainer#max_epochs": 1}
    teacher = tmp_path / "teacher.pt"
    run("training", "hippocampus", "train", **{**overrides, "model_path": str(teacher)})
    log, names = tmp_path / "log", ("train", "../../methods/self_training", "multi_gpu_train")
    process = start(log, names, {**overrides, "output_dir": tmp_path / "student", "teacher": teacher})
    assert process.wait(600) == 0, log.read_text()[-3000:]
    split = json.loads((tmp_path / "student" / "split.json").read_text())
    labels = list((tmp_path / "student" / "teacher_labels").iterdir())
    assert {path.name for path in labels} == {f"{name}_seg.nii.gz" for name in split["unlabelled"]}
    assert torch.load(tmp_path / "student" / "last.pt", weights_only=True)["progress"] == {"epoch": 1, "iteration": 2}
