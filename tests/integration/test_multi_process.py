"""Training by torchrun, two processes on a CPU."""

import subprocess
import sys

import torch

from .bundles import ROOT, SMALL, config_files, option, paths


def test_two_processes_train_one_model(phantoms, tmp_path):
    overrides = {
        **SMALL,
        **paths("hippocampus", phantoms, tmp_path),
        "train#trainer#max_epochs": 2,
        "val_interval": 1,
        "batch_size": 2,
        "test_patients": 2,
        "val_patients": 2,
        "train_patients": 4,
        "num_slices": 8,
        "warmup_steps": 1,
        "device": "$torch.device('cpu')",
    }
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["-m", "monai.bundle", "run", "training", "--config_file"]
    words.append(str(config_files("hippocampus", "train", "multi_gpu_train")))
    words += [word for key, value in overrides.items() for word in option(key, value)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    # 8 slices, 2 a process: 2 steps an epoch
    assert last["progress"] == {"epoch": 2, "iteration": 4}
    assert not any(key.startswith("module.") for key in last["network"])
    assert (tmp_path / "model.pt").is_file()
