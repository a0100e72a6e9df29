"""Training by torchrun, two processes on a CPU, of which one dies on the way."""

import json
import os
import signal
from pathlib import Path

import monai.bundle
import psutil
import torch

from .. import forks
from ..waiting import until
from .bundles import SMALL, command, paths, run, start

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


def torchrun(words: list[str], log: Path) -> forks.Fork:
    """Two processes run a bundle's command; torchrun forks them instead of starting new ones."""
    module = words.index("-m")
    ours = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1", "--start-method=fork"]
    ours += ["--run-path", str(Path(monai.bundle.__file__).with_name("__main__.py"))]
    # with torchrun's own store, of which each start finds the former one's addresses, no restart succeeds
    words = [*words[: module + 1], *ours, *words[module + 2 :]]
    return start(words, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")


def test_two_processes_train_one_model_and_go_on_when_one_is_killed(phantoms, tmp_path):
    overrides = {**SHORT, **paths("hippocampus", phantoms, tmp_path), "train#trainer#max_epochs": EPOCHS}
    state, log = tmp_path / "output" / "last.pt", tmp_path / "log"
    process = torchrun(command("training", "hippocampus", "train", "multi_gpu_train", **overrides, resume="true"), log)
    until(state.is_file, 600, process, lambda: log.read_text()[-3000:])
    children = psutil.Process(process.pid).children()
    workers = [child for child in children if child.name() == "pt_elastic"]  # as torchrun calls them
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
    student = {**overrides, "output_dir": tmp_path / "student", "teacher": teacher}
    process = torchrun(command("training", "hippocampus", *names, **student), log)
    assert process.wait(600) == 0, log.read_text()[-3000:]
    split = json.loads((tmp_path / "student" / "split.json").read_text())
    labels = list((tmp_path / "student" / "teacher_labels").iterdir())
    assert {path.name for path in labels} == {f"{name}_seg.nii.gz" for name in split["unlabelled"]}
    assert torch.load(tmp_path / "student" / "last.pt", weights_only=True)["progress"] == {"epoch": 1, "iteration": 2}
