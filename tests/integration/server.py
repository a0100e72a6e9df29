"""A real MONAI Label server with this repository's app, on phantoms and a bundle made small, for tests over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import requests
import torch

from medsaga.data import write_decathlon_phantoms
from medsaga.networks import SamSegmenter

from .. import forks
from .bundles import ROOT

IMAGE_SIZE = 64


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its address, without a slash at the end.
        studies: folder with ``phantom_000.nii.gz`` and so on, without labels.
        labels: folder of the right labels, under the same names.
        bundle: the small bundle that it serves.
        log: file of all its output.
        process: the server's own.
    """

    url: str
    studies: Path
    labels: Path
    bundle: Path
    log: Path
    process: forks.Fork
    environment: dict[str, str] = field(default_factory=dict)

    def request(self, method: str, path: str, **options) -> requests.Response:
        """A request with a time limit of two minutes."""
        return requests.request(method, f"{self.url}{path}", timeout=120, **options)

    def info(self) -> dict:
        return self.request("GET", "/info/").json()

    def infer(self, model: str, image: str = "", session: str = "", /, **params) -> requests.Response:
        """Segment with parameters of the model; the answer's content is the mask's file."""
        query = {"image": image, "session_id": session, "output": "image"}
        return self.request("POST", f"/infer/{model}", params=query, data={"params": json.dumps(params)})

    def save_label(self, image: str, file: Path, tag: str = "final", **params) -> requests.Response:
        with open(file, "rb") as content:
            return self.request(
                "PUT",
                "/datastore/label",
                params={"image": image, "tag": tag},
                data={"params": json.dumps(params)},
                files={"label": (Path(file).name, content)},
            )

    def add_image(self, image: str, file: Path) -> requests.Response:
        with open(file, "rb") as content:
            return self.request(
                "PUT", "/datastore/image", params={"image": image}, files={"file": (Path(file).name, content)}
            )

    def training(self) -> dict:
        """State of the last training; empty before the first."""
        answer = self.request("GET", "/train/")
        return answer.json() if answer.ok else {}

    def wait_for_training(self, seconds: float = 240) -> dict:
        """Wait until no training runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self.training()
            if state.get("status") not in ("RUNNING", "SUBMITTED"):
                return state
            time.sleep(0.5)
        raise TimeoutError(f"The training has not ended after {seconds} s:\n{self.tail()}")

    def training_processes(self) -> list[psutil.Process]:
        """The processes of a running training; others, which decode DICOM for instance, stay as long as the server."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        starts = [child for child in children if _name(child) == "training"]  # as tests/forks.py calls them
        return [process for start in starts for process in (start, *start.children(recursive=True))]

    def tail(self, characters: int = 4000) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-characters:]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:  # it has ended meanwhile
        return ""


def fill(folder: Path) -> Path:
    """Leave no space in a file system; returns the file that takes it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return filler


def small_bundle(folder: Path, name: str = "hippocampus", trained: bool = True, pretrained: bool = True) -> Path:
    """A copy of a bundle with the test encoder, as a site would change its configs.

    Args:
        folder: where the copy is made, under the bundle's name.
        trained: random weights of the bundle's classes are there as ``models/model.pt``.
        pretrained: training and prompts start from random weights with SAM's four masks, as a file; else from none.
    """
    bundle = folder / name
    shutil.copytree(ROOT / "bundles" / name, bundle, ignore=shutil.ignore_patterns("cache", "output", "models", "*.pt"))
    weights = folder / f"{name}_sam.pt"
    if pretrained:
        # as SAM's own file has them, without the normalisation that a SamSegmenter saves
        torch.save({k: v for k, v in _random_weights(num_classes=4, seed=0).items() if "pixel_" not in k}, weights)
    for config in ("train", "inference"):
        path = bundle / "configs" / f"{config}.json"
        content = json.loads(path.read_text())
        content["network_def"]["encoder"], content["image_size"] = "vit_test", IMAGE_SIZE
        if config == "train":
            content["weights"] = str(weights) if pretrained else None
        path.write_text(json.dumps(content))
    if trained:
        (bundle / "models").mkdir()
        classes = json.loads((bundle / "configs" / "metadata.json").read_text())
        count = len(classes["network_data_format"]["outputs"]["pred"]["channel_def"])
        torch.save(_random_weights(num_classes=count, seed=1), bundle / "models" / "model.pt")
    return bundle


def _random_weights(num_classes: int, seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SamSegmenter("vit_test", image_size=IMAGE_SIZE, num_classes=num_classes).state_dict()


@contextmanager
def serve(
    folder: Path,
    bundle: Path | None = None,
    cases: int = 4,
    studies: Path | None = None,
    conf: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    words: Sequence[str] = (),
) -> Iterator[Server]:
    """Start a server and stop it with all its processes.

    Args:
        folder: for everything that is written.
        bundle: to serve; a trained small one unless given.
        cases: number of phantoms.
        studies: another folder than ``folder/studies`` for them.
        conf: further ``--conf``.
        environment: further environment variables.
        words: further words of the command.

    Raises:
        RuntimeError: with the end of the log, when it does not answer within three minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle = bundle or small_bundle(folder)
    studies = studies or folder / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    phantoms = write_decathlon_phantoms(folder / "phantoms", cases=cases, shape=(24, 32, 12))
    for image in (phantoms / "imagesTr").iterdir():
        shutil.copy(image, studies)
    # the app writes its logs into its own folder; the repository's stays as it is
    app = folder / "app"
    app.mkdir(exist_ok=True)
    for part in ("main.py", "lib"):
        if not (app / part).exists():
            (app / part).symlink_to(ROOT / "monailabel_app" / part)
    port = forks.free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port), *words]
    for key, value in {"models": str(bundle), **(conf or {})}.items():
        command += ["--conf", key, value]
    settings = {
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "TMPDIR": str(folder / "tmp"),
        **(environment or {}),
    }
    (folder / "tmp").mkdir(exist_ok=True)
    log = folder / "server.log"
    process = forks.start(command, log, folder, {**os.environ, **settings})
    server = Server(
        f"http://127.0.0.1:{port}", studies, phantoms / "labelsTr", bundle, log, process, environment=settings
    )
    try:
        wait_for(f"{server.url}/info/", process, log)
        yield server
    finally:
        stop(process)


def wait_for(url: str, process: subprocess.Popen | forks.Fork, log: Path, seconds: float = 180) -> requests.Response:
    """Wait until a process answers at an address.

    Raises:
        RuntimeError: with the end of the log, when it has ended or does not answer in this time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            answer = requests.get(url, timeout=120)
            if answer.ok:
                return answer
        except requests.ConnectionError:
            pass
        time.sleep(0.3)
    end_of_log = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"{' '.join(process.args[:4])} does not answer at {url}:\n{end_of_log}")


def stop(process: subprocess.Popen | forks.Fork) -> None:
    """End a process and those that it has started, by their ids."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()


def read_mask(content: bytes, folder: Path, name: str = "mask.nii.gz") -> np.ndarray:
    """The mask of an answer as (W, H, D)."""
    path = folder / name
    path.write_bytes(content)
    return np.asarray(nib.load(path).dataobj)
