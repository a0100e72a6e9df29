"""``python -m monailabel_app.serve`` as a newcomer runs it: with Orthanc installed, and without."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from monailabel_app.sample.orthanc import find_orthanc
from monailabel_app.sample.phantom_ct import phantom_ct
from monailabel_app.serve import _samples

from medsaga.data import write_decathlon_phantoms

from .. import forks
from ..waiting import until
from .bundles import ROOT
from .server import stop

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

pytestmark = pytest.mark.integration

LIVER = 6  # of the drawn CT


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Folder in which the sample data need no download."""
    work = tmp_path_factory.mktemp("serve")
    write_decathlon_phantoms(work / "data" / "Task04_Hippocampus", cases=3, shape=(24, 32, 12))
    return work


@pytest.fixture(scope="module")
def orthanc() -> tuple[str, str]:
    found = find_orthanc()
    confined = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), "true"]
    if not found:
        pytest.skip("Orthanc with DICOMweb is not installed: .ci/install-viewers installs it")
    if not shutil.which("unshare") or subprocess.run(confined, capture_output=True).returncode:
        pytest.skip("No network namespace can be made: run as root, or where users may")
    return found


class Served:
    """The command while it runs."""

    def __init__(self, process: forks.Fork, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.all = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]

    def get(self, path: str, **params: str) -> requests.Response:
        answer = requests.get(f"{self.url}{path}", params=params, timeout=60)
        assert answer.ok, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer

    def nothing_is_left(self) -> bool:
        return until(lambda: not any(_runs(process) for process in self.all), 40)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def serving(work: Path, name: str, **environment: str):
    """The command on a free port until it says what to open; the sample data lie beside its output."""
    port, log = forks.free_port(), work / f"{name}.log"
    words = [sys.executable, "-m", "monailabel_app.serve", "--port", str(port), "--output", str(work / name)]
    settings = {
        **os.environ,
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "MEDSAGA_DATA": str(work),
        **environment,
    }
    log.write_text("")
    process = forks.start(words, log, ROOT, settings)
    try:
        until(lambda: "What is served" in log.read_text(), 150, process, lambda: log.read_text()[-3000:])
        yield Served(process, f"http://127.0.0.1:{port}", log)
    finally:
        stop(process)


def instructions(served: Served) -> list[str]:
    """The last lines of the terminal."""
    time.sleep(1)  # what would scroll them away comes now
    lines = [line.strip() for line in served.log.read_text().rstrip().splitlines()]
    assert lines[-1] == f"What is served, and the progress of trainings: {served.url}/", lines[-5:]
    return lines[lines.index("Open:") - 1 :]


def test_with_orthanc_ct_and_mr_can_be_prompted_in_ohif_at_once(work, orthanc):
    with serving(work, "serve") as served:
        said = instructions(served)
        links = [line for line in said if "/ohif/" in line]
        assert len(links) == 1 and f"OHIF: {served.url}/ohif/ " in links[0]
        assert "MR, 3:" in said[0] and "CT, 3 drawn ones" in said[0]

        page = served.get("/").text
        assert f'<a href="{served.url}/ohif/">' in page
        assert all(word in page for word in ("6 images", "hippocampus", "abdomen", "CT, 3 drawn ones"))
        assert "<title>OHIF" in served.get("/ohif/").text or 'id="root"' in served.get("/ohif/").text
        studies = served.get("/proxy/dicom/qido/studies").json()
        assert len({study["0020000D"]["Value"][0] for study in studies}) == 6
        patients = {study["00100020"]["Value"][0]: study["0020000D"]["Value"][0] for study in studies}
        assert {name.split("_")[0] for name in patients} == {"phantom", "drawn"}

        (series,) = served.get(f"/proxy/dicom/qido/studies/{patients['drawn_abdomen_0']}/series").json()
        _prompt_the_liver(served, series["0020000E"]["Value"][0])

        store = _store_of(served)
        assert requests.get(f"{store}/studies", timeout=30).status_code == 401, "no password, no images"
        assert _addresses(served) == {"127.0.0.1"}
        served.process.terminate()
        served.process.wait(30)
        assert served.nothing_is_left()

    # the second start sends nothing, so it needs no data; killed, it leaves nothing either
    sent = (work / "serve" / "store" / "sent.json").stat().st_mtime_ns
    with serving(work, "serve", MEDSAGA_DATA="/nowhere") as served:
        assert (work / "serve" / "store" / "sent.json").stat().st_mtime_ns == sent
        assert len(served.get("/proxy/dicom/qido/studies").json()) == 6
        served.process.kill()
        assert served.nothing_is_left()


def _prompt_the_liver(served: Served, series: str) -> None:
    label = np.asarray(phantom_ct(0)[1].dataobj) == LIVER
    k = int(label.sum((0, 1)).argmax())
    column, row = np.argwhere(label[:, :, k]).mean(0).round().astype(int).tolist()
    params = {"label": "liver", "foreground": [[column, row, k]], "background": []}
    query = {"image": series, "output": "image"}
    form = {"params": json.dumps(params)}
    answer = requests.post(f"{served.url}/infer/abdomen_prompt", params=query, data=form, timeout=120)
    assert answer.ok, answer.text[:500]
    mask = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)[:, :, k] > 0
    dice = 2 * (mask & label[:, :, k]).sum() / (mask.sum() + label[:, :, k].sum())
    assert dice > 0.8, "published weights, one click"


def _store_of(served: Served) -> str:
    return re.search(r"Init Datastore for: (http://127\.0\.0\.1:\d+/dicom-web)", served.log.read_text()).group(1)


def _addresses(served: Served) -> set[str]:
    """What the server and the store's processes listen on; Orthanc itself is in a network of its own."""
    listening = [c for p in served.all for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return {connection.laddr.ip for connection in listening}


def test_without_orthanc_a_folder_is_served_and_one_line_says_what_to_install(work, tmp_path):
    with serving(work, "folder", PATH=str(tmp_path)) as served:
        said = instructions(served)
        (ohif,) = (line for line in said if line.startswith("OHIF"))
        assert "apt install orthanc orthanc-dicomweb" in ohif
        page = served.get("/").text
        assert "apt install orthanc" in page and "3 images" in page and "href" in page and "/ohif/" not in page
        assert len(served.get("/datastore/", output="all").json()["objects"]) == 3
        served.process.terminate()
        served.process.wait(30)
        assert served.nothing_is_left()


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "monailabel_app.serve", "--port", port, "--output", str(tmp_path / "serve")]
        done = forks.run(words, ROOT)
    assert done.returncode == 2 and f"--port {port}: another program listens there" in done.stderr
    assert not list(tmp_path.iterdir())


def test_where_orthanc_cannot_be_confined_it_does_not_run_and_the_folder_is_served(work, monkeypatch, orthanc):
    programs = work / "programs"
    programs.mkdir()
    (programs / "Orthanc").symlink_to(orthanc[0])
    (programs / "unshare").write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    (programs / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    environment = {}
    studies, conf = _samples(work / "confined", forks.free_port(), environment)
    assert studies == str(work / "confined" / "studies") and len(list(Path(studies).iterdir())) == 3
    assert "Operation not permitted" in conf["no_ohif"] and environment == {}
