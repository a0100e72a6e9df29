"""Check step by step whether a server works, for those who run it.

``python -m monailabel_app.check http://SERVER:8000 [--train] [--username NAME]``

Uploads generated images only, and removes what it has stored.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException
from PIL import Image

from medsaga.data import write_decathlon_phantoms
from medsaga.reading import open_image
from medsaga.reading.labels import whole_numbers

__all__ = ["ServerCheck", "main"]

_TRAINING = "training starts and stops"  # the step's name
_TRAINING_STARTS = 180  # seconds within which a training must run


class Skipped(Exception):  # noqa: N818
    """A step that this server does not offer."""


class ServerCheck:
    """The steps, each printing one line: what was done, ok or failed, the time, and what to do about a failure.

    Args:
        url: of the server.
        folder: for generated files and answers.
        username: needed where the server has users.
        password: of this user.

    Attributes:
        failures: number of failed steps so far.
        skipped: the steps that were not taken, and why.
    """

    def __init__(self, url: str, folder: Path, username: str | None = None, password: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self.username, self.password = username, password
        self.failures = 0
        self.skipped: dict[str, str] = {}
        self._auth: dict[str, str] = {}
        self._client = MONAILabelClient(self.url, tmpdir=str(folder), client_id="check")

    def run(self, train: bool) -> int:
        """Take all steps.

        Args:
            train: also start a training and stop it.

        Returns:
            exit status: 0 when nothing failed, 1 when something did, 2 when nothing failed but ``train`` was asked for
            and could not be tried.
        """
        info: dict[str, Any] = {}
        with self.step("server answers", f"Is it running, and is {self.url} its address? Look into its log.") as say:
            self._login()
            info = self.client.info()
            store = info["datastore"]
            say(f"{info['name']} {info['version']}, {store['total']} images, {store['completed']} labelled")
        if not info:
            return 1
        with self.step(
            "models", "Start the server with --conf models NAME; see its log for why a bundle is left out."
        ) as say:
            if not info["models"]:
                raise ValueError("no model can segment: there are neither trained nor published weights")
            untrained = sorted(set(info["trainers"]) - set(info["models"]))
            say(", ".join(info["models"]) + (f"; not trained yet: {', '.join(untrained)}" if untrained else ""))
        phantoms = {}
        for name, model in info["models"].items():
            # a promptable model of volumes that works by slice calls itself 2-D
            dimension = 3 if f"{name.removesuffix('_prompt')}_propagate" in info["models"] else model["dimension"]
            if dimension not in phantoms:
                phantoms[dimension] = self._phantom(dimension)
            self._segment(name, model, *phantoms[dimension])
        if phantoms:
            self._store_a_label(*next(iter(phantoms.values())), next(iter(info["models"])))
        self._next_sample(info)
        if train:
            self._train(info)
        if self.failures:
            print(f"{self.failures} failed.")
            return 1
        reasons = "; ".join(f"{step}: {reason}" for step, reason in self.skipped.items())
        print(f"Nothing failed, but not all was tried. Skipped: {reasons}." if reasons else "All steps are ok.")
        return 2 if _TRAINING in self.skipped else 0

    @property
    def client(self) -> MONAILabelClient:
        """MONAI Label's own client, its headers reset: it would send those of an upload with later requests."""
        self._client._headers = dict(self._auth)
        return self._client

    @contextmanager
    def step(self, name: str, remedy: str) -> Iterator[Callable[[str], None]]:
        """One line of the report; an error inside makes the step fail and ends it.

        Args:
            name: of the step.
            remedy: what to do where it fails.

        Yields:
            a function that takes the text that the line shows after ok.
        """
        notes: list[str] = []
        start = time.monotonic()
        outcome = "ok"
        try:
            yield notes.append
        except Skipped as reason:
            outcome, notes = "skipped", [str(reason)]
            self.skipped[name] = str(reason)
        except Exception as err:
            self.failures += 1
            outcome, notes = "failed", [_reason(err), remedy]
        print(f"{name:<44}{outcome:<9}{time.monotonic() - start:6.2f} s  {'  '.join(notes)}".rstrip(), flush=True)

    def _login(self) -> None:
        if not self.client.auth_enabled():
            return
        if not self.username:
            raise ValueError("the server has users: name one with --username")
        token = self.client.auth_token(self.username, self.password or "")
        self._auth = {"Authorization": f"{token['token_type']} {token['access_token']}"}

    def _phantom(self, dimension: int) -> tuple[Path, np.ndarray]:
        """A generated image file, and its label on the same grid."""
        folder = write_decathlon_phantoms(self.folder / f"phantom{dimension}", cases=1, shape=(40, 48, 24))
        path = next((folder / "imagesTr").iterdir())
        label = _values(folder / "labelsTr" / path.name)
        if dimension == 3:
            return path, label
        middle = label.shape[2] // 2
        values = open_image(path).load()[..., middle]
        picture = self.folder / "phantom.png"
        Image.fromarray((255 * (values - values.min()) / np.ptp(values)).astype(np.uint8).T).save(picture)
        return picture, label[..., middle]

    def _segment(self, name: str, model: dict[str, Any], image: Path, label: np.ndarray) -> None:
        prompted = model["type"] in ("deepgrow", "deepedit")
        remedy = (
            "See the reason here or in the server's log; a model that was never trained needs labels and a training."
        )
        with self.step(f"{name} segments" + (" at a click" if prompted else ""), remedy) as say:
            session = self.client.create_session(str(image))["session_id"]
            try:
                params: dict[str, Any] = {"result_extension": ".nii.gz" if label.ndim == 3 else ".png"}
                if prompted:
                    inside = np.argwhere(label == 1)
                    params["foreground"] = [inside[len(inside) // 2].tolist()]
                    params["background"] = []
                written, _ = self.client.infer(name, "", params, session_id=session)
                mask = _values(written)
                if mask.shape != label.shape:
                    raise ValueError(f"the mask has the shape {mask.shape}, but the image has {label.shape}")
                say(f"{np.count_nonzero(mask)} of {mask.size} voxels")
            finally:
                self.client.remove_session(session)

    def _store_a_label(self, image: Path, label: np.ndarray, model: str) -> None:
        image_id = f"medsaga-check-{uuid.uuid4().hex[:12]}"
        remedy = "Can the server write to its studies folder, and is there space on its disk?"
        with self.step("stores and returns a label", remedy) as say:
            try:
                self.client.upload_image(str(image), image_id)
            except MONAILabelClientException as err:
                if "Status: 405" in err.msg:
                    raise Skipped("images come from the DICOM store; nothing is written there") from err
                raise
            try:
                if label.ndim == 3:
                    file = self.folder / "label.nii.gz"
                    nib.save(nib.Nifti1Image((label > 0).astype(np.uint8), nib.load(image).affine), file)
                else:
                    file = self.folder / "label.png"
                    Image.fromarray((label > 0).astype(np.uint8).T).save(file)
                bundle = model.removesuffix("_prompt")  # whose classes the values are
                self.client.save_label(image_id, str(file), tag="final", params={"model": bundle})
                fetched = _values(self.client.download_label(image_id, "final"))
                if not np.array_equal(fetched, label > 0):
                    raise ValueError("the label that came back differs from the one that was stored")
                say(f"{np.count_nonzero(fetched)} voxels")
            finally:
                answer = requests.delete(
                    f"{self.url}/datastore/image", params={"id": image_id}, headers=self._auth, timeout=60
                )
                if not answer.ok:
                    raise ValueError(f"the image {image_id} could not be removed; remove it by hand: {answer.text}")

    def _next_sample(self, info: dict[str, Any]) -> None:
        with self.step("proposes the next image", "Are there images without a label in the studies folder?") as say:
            if not info["strategies"]:
                raise ValueError("the server has no strategy")
            if info["datastore"]["total"] == info["datastore"]["completed"]:
                raise Skipped("all images are labelled")
            strategy = "random" if "random" in info["strategies"] else next(iter(info["strategies"]))
            say(f"{self.client.next_sample(strategy, {})['id']} ({strategy})")

    def _train(self, info: dict[str, Any]) -> None:
        remedy = "See the server's log; a training needs at least one label in use."
        with self.step(_TRAINING, remedy) as say:
            if self.client.train_status(check_if_running=True):
                raise ValueError("a training is running; it is left alone, try again when it has ended")
            if not info["datastore"]["completed"]:
                raise Skipped("no image has a label yet, so there is nothing to train on; save one and check again")
            model = next(iter(info["trainers"]))
            self.client.train_start(model, {})
            try:
                state = self._until_it_trains(model)
            finally:
                if self.client.train_status(check_if_running=True):
                    self.client.train_stop()
            end = time.monotonic() + 30
            while self.client.train_status(check_if_running=True):
                if time.monotonic() > end:
                    raise TimeoutError("the training was stopped, but still runs")
                time.sleep(0.5)
            say(f"{model}: {state}")

    def _until_it_trains(self, model: str) -> str:
        """Wait until a started training has taken data and made a step, or has failed."""
        end = time.monotonic() + _TRAINING_STARTS
        before = self.client.info()["train_stats"].get(model, {})
        while time.monotonic() < end:
            status = self.client.train_status()
            if status["status"] == "ERROR":
                raise RuntimeError("the training failed: " + " ".join(status.get("details", [])[-3:]))
            if status["status"] == "DONE":
                return "ended before it was stopped"
            stats = self.client.info()["train_stats"].get(model, {})
            if stats != before:
                return f"epoch {stats.get('epoch')} of {stats.get('total_epochs')}, stopped"
            time.sleep(1)
        raise TimeoutError(f"the training made no step within {_TRAINING_STARTS} s")


def _values(path: str | Path | None) -> np.ndarray:
    """Class numbers of a file, (W, H, D) or (W, H)."""
    if not path:
        raise ValueError("the answer holds no mask")
    return whole_numbers(open_image(path, label=True).load(), path)


def _reason(err: Exception) -> str:
    """What the server said, or what went wrong on the way to it."""
    if not isinstance(err, MONAILabelClientException):
        return f"{err or type(err).__name__}."
    status, _, body = err.msg.partition("; Response: ")
    try:
        return f"{status}: {json.loads(body)['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:300]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        exit status: 0 when nothing failed, 1 when something did, 2 when nothing failed but training could not be tried.
    """
    parser = argparse.ArgumentParser(prog="python -m monailabel_app.check", description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of the server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--train", action="store_true", help="also start a training and stop it")
    parser.add_argument("--username", help="for a server with users; the password is $MEDSAGA_PASSWORD or asked for")
    options = parser.parse_args(arguments)
    password = None
    if options.username:
        password = os.environ.get("MEDSAGA_PASSWORD") or getpass.getpass()
    with tempfile.TemporaryDirectory(prefix="medsaga-check-") as folder:
        return ServerCheck(options.url, Path(folder), options.username, password).run(options.train)


if __name__ == "__main__":
    sys.exit(main())
