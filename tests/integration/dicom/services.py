"""Orthanc and MONAI Label's server as processes of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from ... import forks
from ..bundles import ROOT
from ..server import stop, wait_for

STORE = "http://127.0.0.1:8042"
SERVER = "http://127.0.0.1:8000"  # the port that OHIF in MONAI Label's wheel assumes
ORTHANC_PLUGINS = Path("/usr/share/orthanc/plugins")


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Orthanc with DICOMweb; its index and files lie in ``folder``. Yields the DICOMweb root."""
    settings = {
        "Name": "TEST",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "HttpPort": 8042,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [str(ORTHANC_PLUGINS / "libOrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with _process(["Orthanc", str(folder / "orthanc.json")], folder / "orthanc.log", {}) as process:
        wait_for(f"{STORE}/system", process, folder / "orthanc.log", seconds=30)
        yield f"{STORE}/dicom-web"


def upload(files: list[Path]) -> None:
    for file in files:
        requests.post(f"{STORE}/instances", data=file.read_bytes(), timeout=30).raise_for_status()


@contextmanager
def monai_label(folder: Path, studies: str, conf: dict[str, str], app: Path | None = None, **environment: str):
    """``monailabel start_server`` with this repository's app; what it writes lies in ``folder``.

    Yields:
        path of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    app = app or ROOT / "monailabel_app"
    words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", studies]
    words += ["--host", "127.0.0.1", "--port", "8000"]
    for key, value in conf.items():
        words += ["--conf", key, value]
    settings = {
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    log = folder / "server.log"
    with _process(words, log, settings, cwd=folder) as process:
        wait_for(f"{SERVER}/info/", process, log, seconds=180)
        yield log


@contextmanager
def _process(words: list[str], log: Path, environment: dict[str, str], cwd: Path | None = None):
    """A process in a session of its own; at the end it and its children get a signal, by its id."""
    log.write_text("")
    settings = {**os.environ, **environment}
    if words[0] == sys.executable:
        process = forks.start(words, log, cwd or ROOT, settings, session=True)
    else:
        with open(log, "w") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env=settings, start_new_session=True
            )
    try:
        yield process
    finally:
        stop(process)
