"""Training by torchrun, two processes on a CPU, of which one dies on the way."""

import os
import signal
import subprocess
import sys

import psutil
import torch

from ..waiting import until
from .bundles import ROOT, SMALL, config_files, option, paths

EPOCHS = 8


def test_two_processes_train_one_model_and_go_on_when_one_is_killed(phantoms, tmp_path):
    overrides = {
        **SMALL,
        **paths("hippocampus", phantoms, tmp_path),
        "train#trainer#max_epochs": EPOCHS,
        "val_interval": 1,
        "batch_size": 2,
        "test_patients": 2,
        "val_patients": 2,
        "train_patients": 4,
        "num_slices": 8,
        "warmup_steps": 1,
        "save_seconds": 0,
        "resume": "true",
        "device": "$torch.device('cpu')",
    }
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["--max-restarts=1", "-m", "monai.bundle", "run", "training", "--config_file"]
    words.append(str(config_files("hippocampus", "train", "multi_gpu_train")))
    words += [word for key, value in overrides.items() for word in option(key, value)]
    state, log = tmp_path / "output" / "last.pt", tmp_path / "log"
    with open(log, "w") as output:
        # with torchrun's own store, of which each start finds the former one's addresses, no restart succeeds
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, env=environment)
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
