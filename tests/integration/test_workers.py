"""Several processes are refused, with the reason."""

from __future__ import annotations

import os
import sys

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.start import NO_WORKERS

from .. import forks
from .bundles import ROOT
from .server import stop

pytestmark = pytest.mark.integration

# `python -m monailabel.main`, but that uvicorn's processes do not import that module before they answer uvicorn. This
# takes about as long as uvicorn waits before it kills them, so that whether they load the app would be left to chance.
# And they are forks, which need not import all that this process has.
CODE = """
import multiprocessing, uvicorn._subprocess
from monailabel.main import Main
uvicorn._subprocess.spawn = multiprocessing.get_context("fork")
Main().run()
"""
MONAI_LABEL = [sys.executable, "-c", CODE]


def test_the_command_ends_with_the_reason(tmp_path):
    studies, app, log = tmp_path / "studies", tmp_path / "app", tmp_path / "server.log"
    studies.mkdir()
    app.mkdir()
    for part in ("main.py", "lib"):
        (app / part).symlink_to(ROOT / "monailabel_app" / part)
    command = [*MONAI_LABEL, "start_server", "--app", str(app), "--studies", str(studies), "--workers", "2"]
    command += ["--conf", "models", "hippocampus", "--host", "127.0.0.1", "--port", "0"]
    process = forks.start(command, log, tmp_path, dict(os.environ))
    try:
        process.wait(300)
    finally:
        stop(process)
    said = log.read_text()
    assert 1 <= said.count(NO_WORKERS) <= 2, said
    assert "Traceback" not in said
    assert "Application startup complete" not in said
    assert list(studies.iterdir()) == [], "refused before the studies are opened"
