"""The commands of docs/from_scans.md, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .. import forks
from .bundles import ROOT
from .server import stop, wait_for

COMMANDS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / "from_scans.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def shell(tmp_path):
    """Runs a block of the page in a folder that stands for the repository's."""
    pytest.importorskip("monailabel")
    (tmp_path / "monailabel_app").mkdir()
    for part in ("main.py", "lib"):
        (tmp_path / "monailabel_app" / part).symlink_to(ROOT / "monailabel_app" / part)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions"),
        "TMPDIR": str(tmp_path),
    }

    def start(block: str) -> subprocess.Popen | forks.Fork:
        words = shlex.split(block)
        if words[0] == "monailabel":
            words[:1] = ["python", "-m", "monailabel.main"]
        if words[:2] == ["python", "-m"]:
            return forks.start([sys.executable, *words[1:]], tmp_path / "log", tmp_path, environment)
        with open(tmp_path / "log", "a") as log:
            return subprocess.Popen(["bash", "-e", "-c", block], cwd=tmp_path, env=environment, stdout=log, stderr=log)

    return start


def test_every_command_of_the_page_runs(shell, tmp_path):
    port = str(forks.free_port())
    output, log, server = tmp_path / "output", tmp_path / "log", None
    blocks = [block.replace("8000", port) for block in COMMANDS]
    assert len(blocks) == 9
    try:
        for block in blocks:
            process = shell(block)
            if block.startswith("monailabel"):
                server = process
                wait_for(f"http://127.0.0.1:{port}/info/", server, log)
            else:
                assert process.wait(300) == 0, log.read_text()[-3000:]
    finally:
        if server is not None:
            stop(server)
    assert (output / "check" / "sheet.png").is_file() and (output / "organ" / "models" / "model.pt").is_file()
    assert (output / "organ" / "output" / "evaluation" / "metrics.csv").is_file()
    (predicted,) = (output / "organ" / "output" / "predictions").rglob("*.nii.gz")
    image = nib.load(output / "scans" / "imagesTr" / "phantom_000.nii.gz")
    for path in (predicted, output / "mask.nii.gz"):
        mask = nib.load(path)
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert "organ" in json.loads((output / "info.json").read_text())["models"]
    assert any(name.endswith("models/model.pt") for name in zipfile.ZipFile(output / "organ.zip").namelist())
