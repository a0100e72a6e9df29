"""A server that is told to end while it trains: nothing of the training is left behind, and nothing is lost."""

from __future__ import annotations

import signal

import psutil
import pytest

from ..waiting import until
from .server import serve

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

pytestmark = pytest.mark.integration

FOREVER = {"max_epochs": 100_000}


def start_training(server):
    """Start a training, and a second one that waits for it; returns the processes of the first when it learns."""
    for _ in range(2):
        assert server.request("POST", "/train/hippocampus", params={"enqueue": True}, json=FOREVER).ok
    until(lambda: server.info()["train_stats"]["hippocampus"].get("epoch"), 120, why=server.tail)
    return server.training_processes()


def test_a_training_ends_with_the_server(tmp_path):
    for number, name in ((signal.SIGTERM, "phantom_000"), (signal.SIGINT, "phantom_001")):
        with serve(tmp_path, tmp_path / "hippocampus" if number == signal.SIGINT else None) as server:
            if number == signal.SIGINT:
                message = server.info()["train_stats"]["hippocampus"]["message"]
                assert message == "the last training ended before it was done"
            assert server.save_label(name, server.labels / f"{name}.nii.gz").ok
            models = {path.name: path.read_bytes() for path in (server.bundle / "models").glob("*.pt")}
            training = start_training(server)
            assert training
            server.process.send_signal(number)
            server.process.wait(60)
            _, alive = psutil.wait_procs(training, timeout=30)
            assert not alive, server.tail()
            until(lambda: not [p for p in psutil.process_iter() if folder(p) == str(tmp_path)], 10, why=server.tail)
            assert {path.name: path.read_bytes() for path in (server.bundle / "models").glob("*.pt")} == models


def folder(process):
    """The working directory, which processes have from the server that starts them."""
    try:
        return process.cwd()
    except psutil.Error:  # it has ended meanwhile
        return ""
