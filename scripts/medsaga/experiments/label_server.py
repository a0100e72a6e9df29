"""A MONAI Label server of the app as a subprocess, and the calls that an annotator's viewer makes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

__all__ = ["LabelServer"]

_START_SECONDS = 300
_POLL_SECONDS = 2.0


class LabelServer:
    """Context manager: a server on a free port of this machine, ended with all it has started.

    Args:
        app: folder of the app.
        studies: folder of images, which becomes the server's datastore.
        bundle: folder of the one bundle to serve.
        log: file for what it prints; added to.

    Raises:
        RuntimeError: it does not start, or answers with an error; the message shows the log or the answer.
    """

    def __init__(self, app: Path, studies: Path, bundle: Path, log: Path) -> None:
        self.app, self.studies, self.bundle, self.log = app, studies, bundle, log
        self.model = bundle.name
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> LabelServer:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-W", "ignore", "-m", "monailabel.main", "start_server", "--app", str(self.app)]
        words += ["--studies", str(self.studies), "--conf", "models", str(self.bundle)]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, "MEDSAGA_FIRST_DICE": "0"}  # what a first model is worth is to be measured
        with self.log.open("a") as file:
            # a group of its own, so that a training in work ends with it
            self._process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, how)
                self._process.wait(30)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue

    def _wait(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if requests.get(f"{self._url}/info/", timeout=60).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.5)
        raise RuntimeError(
            f"the server has not started:\n...{self.log.read_text()[-3000:]}\nThe whole log is {self.log}"
        )

    def _call(self, method: str, path: str, **options: Any) -> requests.Response:
        answer = requests.request(method, self._url + path, timeout=3600, **options)
        if not answer.ok:
            raise RuntimeError(
                f"{method} {path}: {answer.status_code} {answer.text[:1000]}\nThe server's log is {self.log}"
            )
        return answer

    def models(self) -> dict[str, Any]:
        """What the server says of each model, by its name."""
        return self._call("GET", "/info/").json()["models"]

    def labelled(self) -> set[str]:
        """Images that have a final label."""
        objects = self._call("GET", "/datastore/", params={"output": "all"}).json()["objects"]
        return {image for image, content in objects.items() if "final" in content.get("labels", {})}

    def next_sample(self, strategy: str, **params: Any) -> dict[str, Any]:
        """Which image to label next; empty when there is none."""
        return self._call("POST", f"/activelearning/{strategy}", json={"client_id": "annotator", **params}).json()

    def infer(self, model: str, image: str | Path, **params: Any) -> np.ndarray:
        """Mask of an image of the datastore, by id, or of a file, which is uploaded."""
        content = self.infer_file(model, image, **params)
        return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)

    def infer_file(self, model: str, image: str | Path, **params: Any) -> bytes:
        """The same as the file that the server answers with."""
        options: dict[str, Any] = {"params": {"output": "image"}, "data": {"params": json.dumps(params)}}
        if isinstance(image, Path):
            options["files"] = {"file": (image.name, image.read_bytes())}
        else:
            options["params"]["image"] = image
        return self._call("POST", f"/infer/{model}", **options).content

    def save_label(self, image: str, label: Path, **said: Any) -> None:
        """Submit a final label, with what is said of it, such as its ``labelled_slices``."""
        files = {"label": (label.name, label.read_bytes())}
        self._call("PUT", "/datastore/label", params={"image": image}, data={"params": json.dumps(said)}, files=files)

    def first_step(self) -> float:
        """Start a training, stop it after its first optimizer step.

        Returns:
            seconds from the request to the end of that step.
        """
        start = time.perf_counter()
        self._call("POST", f"/train/{self.model}", json={})
        stepped = False
        while not stepped:
            time.sleep(0.1)
            lines = self._call("GET", "/train/").json().get("details", ())
            stepped = any("1/" in line and "loss=" in line for line in lines)
        taken = time.perf_counter() - start
        self._call("DELETE", "/train/")
        return taken

    def train(self) -> dict[str, Any]:
        """Train on all labels and wait for the end.

        Returns:
            MONAI Label's statistics of the training.

        Raises:
            RuntimeError: it failed, with its last lines.
        """
        task = self._call("POST", f"/train/{self.model}", json={}).json()["id"]
        while True:
            time.sleep(_POLL_SECONDS)
            tasks = self._call("GET", "/train/", params={"all": True}).json()
            state = next(t for t in tasks if t["id"] == task)
            if state["status"] not in ("SUBMITTED", "RUNNING"):
                break
        if state["status"] != "DONE":
            raise RuntimeError("the training failed:\n" + "\n".join(state.get("details", [])))
        return self._call("GET", "/info/").json()["train_stats"][self.model]
