"""What cannot be done is answered by the request that asks for it, and what is shown is of the process that lives."""

from __future__ import annotations

import psutil
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from monailabel_app.check import main

from ..waiting import until
from .server import serve, small_bundle, stop

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A fresh store of four phantoms, none of which has a label."""
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("path, body", [("/train/hippocampus", {"max_epochs": 1}), ("/train/", {})])
def test_a_training_without_labels_is_refused_at_once(server, path, body):
    answer = server.request("POST", path, json=body)
    assert answer.status_code == 409, answer.text
    assert "hippocampus has no label to train on: submit one" in answer.json()["detail"]
    assert server.training() == {}, "nothing was started"


def test_the_check_says_that_it_could_not_train(server, capsys):
    assert main([server.url, "--train"]) == 2
    printed = capsys.readouterr().out
    last = printed.splitlines()[-1]
    assert "All steps are ok" not in printed
    assert last.startswith("Nothing failed, but not all was tried. Skipped: training starts and stops: no image has a")
    assert main([server.url]) == 0, "without --train nothing is left out"
    assert capsys.readouterr().out.endswith("All steps are ok.\n")


def test_progress_of_a_killed_training_is_not_shown_after_a_restart(tmp_path):
    bundle = small_bundle(tmp_path)
    with serve(tmp_path, bundle) as server:
        assert server.save_label("phantom_000", server.labels / "phantom_000.nii.gz").ok
        assert server.request("POST", "/train/hippocampus", json={"max_epochs": 10000}).ok
        until(lambda: server.info()["train_stats"]["hippocampus"].get("epoch"), 180, why=server.tail)
        running = server.info()["train_stats"]["hippocampus"]
        assert running["total_epochs"] == 10000 and "process" not in running and "message" not in running
        processes = server.training_processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=20)
        server.wait_for_training(60)
        killed = server.info()["train_stats"]["hippocampus"]
        stop(server.process)
    with serve(tmp_path, bundle) as server:
        restarted = server.info()["train_stats"]["hippocampus"]
    for stats in (restarted, killed):
        assert not {"epoch", "current_epoch", "total_epochs", "current_time"} & set(stats)
        assert stats["message"] == "the last training ended before it was done"
