"""``python -m monailabel_app.serve`` (``make serve``): the server on sample data, by default for this machine only."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from pathlib import Path

from monailabel_app.lib.cpu import CPU_ENVIRONMENT
from monailabel_app.lib.start import NO_WORKERS
from monailabel_app.sample.contents import fill_folder, fill_store, write_abdomen
from monailabel_app.sample.orthanc import find_orthanc, start_orthanc

APP = Path(__file__).resolve().parent


def main() -> None:
    """Prepare images, and a DICOM store for them where Orthanc is installed, and become MONAI Label's server."""
    parser = argparse.ArgumentParser(description="Serve bundles, with sample data unless --studies names other images.")
    parser.add_argument(
        "--studies",
        help="folder of images or DICOMweb address (default: sample data, in a DICOM store where Orthanc is installed)",
    )
    parser.add_argument(
        "--models",
        help="bundles: all, names, folders (default: hippocampus, and with the sample DICOM store one for its CT)",
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--root_path", default="", help="path that a reverse proxy puts before the server's own")
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--output", default="output/serve", help="folder of the sample data (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.workers != 1:
        parser.error(NO_WORKERS)
    if reason := _taken(arguments.host, arguments.port):
        parser.error(reason)

    environment = {**CPU_ENVIRONMENT, "MONAI_LABEL_AUTO_UPDATE_SCORING": "false", **os.environ}
    studies, conf = arguments.studies, {"models": "hippocampus"}
    if studies is None:
        try:
            studies, more = _samples(Path(arguments.output).absolute(), arguments.port, environment)
        except KeyboardInterrupt:
            sys.exit(130)
        conf.update(more)
    if arguments.models is not None:
        conf["models"] = arguments.models

    words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(studies)]
    for key, value in conf.items():
        words += ["--conf", key, value]
    words += ["--host", arguments.host, "--port", str(arguments.port)]
    words += ["--workers", "1"]  # whatever WEB_CONCURRENCY says
    words += ["--root_path", arguments.root_path] if arguments.root_path else []
    # the store's process ends when this one does, and this one becomes the server
    os.execve(sys.executable, words, environment)


def _taken(host: str, port: int) -> str:
    """Why the server could not listen there; empty if it can."""
    if not 0 < port < 2**16:
        return f"--port {port}: it must be 1 to 65535"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            return f"--port {port}: another program listens there; stop it, or give another port, as --port {port + 10}"
        return f"--host {host} --port {port}: the server cannot listen there ({err.strerror})"
    return ""


def _samples(folder: Path, port: int, environment: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Where sample images are, and what the app is to know of them; the environment gets what a DICOM store needs."""
    data, orthanc = folder.parent / "data", find_orthanc()
    no_ohif = "needs a DICOM store: install Orthanc (Debian, Ubuntu: `sudo apt install orthanc orthanc-dicomweb`)"
    no_ohif += " and start again (docs/administrator.md)"
    if orthanc:
        try:
            store = start_orthanc(*orthanc, folder / "store", port + 1)
        except RuntimeError as err:
            no_ohif = f"needs a DICOM store, and Orthanc cannot be started: {err}. See docs/administrator.md"
        else:
            about = fill_store(store, folder / "store", data)
            for kind in ("QIDO", "WADO", "STOW"):  # what a site has set for its own store does not hold for this one
                environment.pop(f"MONAI_LABEL_{kind}_PREFIX", None)
            environment["MONAI_LABEL_DICOMWEB_USERNAME"] = store.user
            environment["MONAI_LABEL_DICOMWEB_PASSWORD"] = store.password
            environment["MONAI_LABEL_DICOMWEB_CACHE_PATH"] = str(folder / "cache")
            return store.url, {"models": f"hippocampus,{write_abdomen(folder / 'bundles')}", "about": about}
    return str(folder / "studies"), {"about": fill_folder(folder / "studies", data), "no_ohif": no_ohif}


if __name__ == "__main__":
    main()
