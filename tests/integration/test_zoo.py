"""An exported bundle where it will be used: with only the wheel of this package, and in MONAI Label's stock app."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import torch

from medsaga.bundle.__main__ import main

from .. import forks
from ..verify.conftest import small, weights
from .bundles import ROOT
from .server import read_mask, stop, wait_for

WHERE = "import importlib.util; print(importlib.util.find_spec('medsaga').origin)"
SAMPLE_APPS = [Path(sys.prefix, "monailabel", "sample-apps"), Path(sys.prefix, "share", "monailabel", "sample-apps")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder that an exported zip file holds."""
    work = tmp_path_factory.mktemp("zoo")
    bundle = small(work / "mine" / "hippocampus")
    (bundle / "models").mkdir()
    torch.save(weights(), bundle / "models" / "model.pt")
    main(["export", str(bundle), "--output", str(work / "x.zip"), "--forms", "ts"])
    with zipfile.ZipFile(work / "x.zip") as file:
        file.extractall(work / "unpacked")
    return work / "unpacked" / "hippocampus"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with this package's wheel alone."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "scripts", source / "scripts", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*build, "-w", str(work), str(source)], check=True)
    with zipfile.ZipFile(next(work.glob("medsaga-*.whl"))) as wheel:
        wheel.extractall(work / "packages")
    return work / "packages"


def run(folder, *words):
    return forks.run([sys.executable, "-W", "ignore", *words], folder)


@pytest.mark.integration
def test_it_runs_with_the_wheel_alone_from_any_folder(exported, packages, phantoms, tmp_path, monkeypatch):
    # before this repository, of which nothing is found then
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), os.environ["PYTHONPATH"]]))
    monkeypatch.delenv("MEDSAGA_DATA", raising=False)
    assert run(tmp_path, "-c", WHERE).stdout.startswith(str(packages / "medsaga"))
    # from the folder beside it, as its model card says
    words = ["-m", "monai.bundle", "run", "evaluating", "--config_file", "hippocampus/configs/inference.json"]
    images = tmp_path / "images"
    images.mkdir()
    first = sorted((phantoms / "imagesTr").iterdir())[0]
    shutil.copy(first, images)
    done = run(exported.parent, *words, "--dataset_dir", str(images))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    mask = nib.load(next((exported / "output" / "predictions").iterdir()))
    image = nib.load(first)
    assert mask.shape == image.shape and np.array_equal(mask.affine, image.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
    shutil.rmtree(exported / "output")
    # and the validator with the schema that the wheel brings
    done = run(tmp_path, "-m", "medsaga.bundle", "verify", str(exported), "--published")
    assert done.returncode == 0, done.stdout


@pytest.mark.integration
def test_monai_labels_stock_app_serves_it(exported, phantoms, tmp_path):
    pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install 'medsaga[label]'")
    app = next((folder / "monaibundle" for folder in SAMPLE_APPS if (folder / "monaibundle").is_dir()), None)
    if app is None:
        pytest.skip("MONAI Label's sample apps are not beside it")
    shutil.copytree(app, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(exported, tmp_path / "app" / "model" / "hippocampus")
    (tmp_path / "studies").mkdir()
    image = shutil.copy(sorted((phantoms / "imagesTr").iterdir())[0], tmp_path / "studies")
    url = f"http://127.0.0.1:{(port := forks.free_port())}"
    command = [sys.executable, "-W", "ignore", "-m", "monailabel.main", "start_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--app", str(tmp_path / "app"), "--studies", str(tmp_path / "studies")]
    # models that lie there, of which none is asked for in the internet
    for key, value in {"models": "hippocampus", "zoo_source": "ngc", "sam2": "false"}.items():
        command += ["--conf", key, value]
    environment = {**os.environ, "MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions")}
    log = tmp_path / "server.log"
    server = forks.start(command, log, tmp_path, environment)
    try:
        info = wait_for(f"{url}/info/", server, log).json()
        assert info["models"]["hippocampus"]["labels"] == {"anterior": 1, "posterior": 2}
        assert "hippocampus" in info["trainers"]
        name = Path(image).name.removesuffix(".nii.gz")
        query = {"image": name, "output": "image"}
        answer = requests.post(f"{url}/infer/hippocampus", params=query, data={"params": "{}"}, timeout=120)
        assert answer.ok, log.read_text()[-3000:]
        mask = read_mask(answer.content, tmp_path)
        assert mask.shape == nib.load(image).shape and set(np.unique(mask)) <= {0, 1, 2}
        assert np.allclose(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(image).affine)
        assert not (tmp_path / "app" / "model" / "hippocampus" / "output").exists(), "the app keeps masks itself"
    finally:
        stop(server)
