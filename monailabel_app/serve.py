"""``python -m monailabel_app.serve`` (``make serve``): the server on sample data, unless told for this machine only."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from monailabel_app.lib.cpu import CPU_ENVIRONMENT
from monailabel_app.lib.start import NO_WORKERS

from medsaga.data import decathlon_datalist
from medsaga.demo import sample_data

APP = Path(__file__).resolve().parent


def main() -> None:
    """Prepare a folder of images, say what to open, and become MONAI Label's server."""
    parser = argparse.ArgumentParser(description="Serve bundles, on sample data unless told.")
    parser.add_argument("--studies", help="folder of images or DICOMweb address (default: sample data)")
    parser.add_argument("--models", default="hippocampus", help="bundles: all, names, folders (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--root_path", default="", help="path that a reverse proxy has before the server's own")
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--output", default="output/serve", help="folder of the sample data (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.workers != 1:
        parser.error(NO_WORKERS)

    studies = arguments.studies
    if studies is None:
        folder = Path(arguments.output).absolute()
        data, source = sample_data(folder.parent / "data")
        studies = folder / "studies"
        studies.mkdir(parents=True, exist_ok=True)
        for case in decathlon_datalist(data):
            if not (studies / Path(case["image"]).name).exists():
                shutil.copy(case["image"], studies)
        print(f"Sample data: {source}; images without labels in {studies}.")
    url = f"http://{arguments.host}:{arguments.port}"
    lines = [
        f"3D Slicer: extension MONAILabel, server {url}, then Next Sample (docs/slicer.md)",
        f"Is it well? python -m monailabel_app.check {url}",
        f"What is served, and how far trainings are: {url}/",
    ]
    if str(studies).startswith("http"):
        lines.insert(0, f"OHIF: {url}/ohif/ (docs/ohif.md)")
    else:
        lines.append("OHIF needs a DICOM store: --studies http://HOST/dicom-web (docs/administrator.md)")
    print("Open, as soon as it says that it runs:", *lines, sep="\n  ", flush=True)

    environment = {**CPU_ENVIRONMENT, "MONAI_LABEL_AUTO_UPDATE_SCORING": "false", **os.environ}
    words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(studies)]
    words += ["--conf", "models", arguments.models, "--host", arguments.host, "--port", str(arguments.port)]
    words += ["--workers", "1"]  # whatever WEB_CONCURRENCY says
    words += ["--root_path", arguments.root_path] if arguments.root_path else []
    os.execve(sys.executable, words, environment)


if __name__ == "__main__":
    main()
