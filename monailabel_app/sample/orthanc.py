"""Orthanc with DICOMweb as one server's store: on loopback only, with a password of its own, ended with the server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests

__all__ = ["Store", "find_orthanc", "start_orthanc"]

_PLUGIN = "libOrthancDicomWeb.so"
_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")  # of Debian, of Orthanc's builds
_LOOPBACK = Path(__file__).with_name("loopback.py")
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Store:
    """A DICOM store that runs.

    Args:
        url: its DICOMweb address.
        user: name to log in with.
        password: made for this start.
    """

    url: str
    user: str
    password: str


def find_orthanc() -> tuple[str, str] | None:
    """Orthanc's program and DICOMweb plugin where both are installed."""
    program = shutil.which("Orthanc")
    plugins = [path for folder in _PLUGIN_FOLDERS if (path := Path(folder) / _PLUGIN).is_file()]
    return (program, str(plugins[0])) if program and plugins else None


def start_orthanc(program: str, plugin: str, folder: Path, port: int) -> Store:
    """Start Orthanc on a folder and wait until it answers. It ends with this process, even if that calls ``exec``.

    Args:
        program: Orthanc's.
        plugin: for DICOMweb.
        folder: of its images and index, made if need be.
        port: on loopback that is tried first; if it is not free, another one is taken.

    Returns:
        the store.

    Raises:
        RuntimeError: it does not start, with the reason.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = secrets.token_urlsafe(24)
    config, log = folder / "orthanc.json", folder / "orthanc.log"
    for file in (config, log):  # an Orthanc of a former start may still write to its own
        file.unlink(missing_ok=True)
    with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(_configuration(folder, plugin, password), file, indent=1)
    confined = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    with _listening(port) as socket_, log.open("w") as output:
        url = f"http://127.0.0.1:{socket_.getsockname()[1]}/dicom-web"
        words = [*confined, sys.executable, "-I", str(_LOOPBACK), str(socket_.fileno()), str(os.getpid())]
        words += [str(folder / ".lock"), program, str(config)]
        try:
            # a session of its own: Ctrl-C is for the server, which may need the store while it ends
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[socket_.fileno()],
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as err:
            raise RuntimeError("unshare (util-linux) is needed to start it, but is not installed") from err
    store = Store(url, "medsaga", password)
    _wait(store, process, log)
    return store


def _configuration(folder: Path, plugin: str, password: str) -> dict:
    return {
        "Name": "medsaga samples",
        "StorageDirectory": str(folder / "images"),
        "IndexDirectory": str(folder / "images"),
        "HttpPort": 8042,  # in its own network, see loopback.py
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"medsaga": password},
        "DicomServerEnabled": False,
        "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }


def _listening(port: int) -> socket.socket:
    """A socket on loopback; on the port where that is free, so that the server's cache finds the store again."""
    for wanted in (port, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", wanted))
            listening.listen(128)
            return listening
        except (OSError, OverflowError):
            listening.close()
            if not wanted:
                raise
    raise AssertionError("unreachable")


def _wait(store: Store, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if requests.get(f"{store.url}/studies?limit=1", auth=(store.user, store.password), timeout=10).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    process.terminate()
    said = log.read_text(errors="replace").strip().splitlines()
    raise RuntimeError(f"{said[-1] if said else 'it does not answer'} ({log})")
