"""What to open once the server runs: one list, for the page at ``/`` and for the terminal."""

from __future__ import annotations

import ssl
import sys
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple

from monailabel.config import settings

from lib.start import Start

__all__ = ["Line", "print_when_it_answers", "to_open"]

_WAIT_SECONDS = 60.0


class Line(NamedTuple):
    """One thing to open or to do.

    Args:
        title: what it is.
        link: address for a browser, empty for none.
        text: what to do there; what is to be typed stands between backticks.
    """

    title: str
    link: str
    text: str

    def __str__(self) -> str:
        text = self.text.replace("`", "")
        return f"{self.title}: {self.link} ({text})" if self.link else f"{self.title}: {text}"


def to_open(address: str, studies: str, conf: Mapping[str, str]) -> list[Line]:
    """What can be opened.

    Args:
        address: of the server, without a slash at the end.
        studies: folder of images or address of a DICOM store.
        conf: of the app; ``no_ohif`` is what a folder's user has to do for OHIF, where that is known.
    """
    slicer = Line("3D Slicer", "", f"extension MONAILabel, server `{address}`, then Next Sample: docs/slicer.md")
    check = Line("Check", "", f"`python -m monailabel_app.check {address}`")
    if studies.startswith(("http://", "https://")):
        return [Line("OHIF", f"{address}/ohif/", "choose a study, then MONAI Label: docs/ohif.md"), slicer, check]
    store = "needs a DICOM store: `--studies http://HOST/dicom-web` (docs/administrator.md)"
    return [slicer, Line("OHIF", "", conf.get("no_ohif") or store), check]


def print_when_it_answers(start: Start, studies: str, conf: Mapping[str, str]) -> None:
    """Print what to open as soon as the server answers, so that no line of its start follows.

    Args:
        start: its options.
        studies: folder of images or address of a DICOM store.
        conf: of the app; ``about`` is more about the images, in a sentence.
    """
    tls = any(word.split("=")[0] == "--ssl_keyfile" for word in sys.argv)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(start.host, start.host)
    port = settings.MONAI_LABEL_SERVER_PORT
    named = f"[{host}]" if ":" in host else host
    address = f"{'https' if tls else 'http'}://{named}:{port}{start.root_path}"

    def wait_and_print() -> None:
        end = time.monotonic() + _WAIT_SECONDS
        while not _answers(host, port, tls):
            if time.monotonic() > end:  # whatever keeps it from starting says so itself
                return
            time.sleep(0.2)
        lines = [str(line) for line in to_open(address, studies, conf)]
        lines.append(f"What is served, and the progress of trainings: {address}/")
        head = " ".join(filter(None, ["The server runs.", conf.get("about")]))
        print(f"\n{head}\nOpen:", *lines, sep="\n  ", end="\n\n", flush=True)

    threading.Thread(target=wait_and_print, name="what to open", daemon=True).start()


def _answers(host: str, port: int, tls: bool) -> bool:
    if tls:  # it is this process that is asked, whatever its certificate is made out to
        connection = HTTPSConnection(host, port, timeout=5, context=ssl._create_unverified_context())
    else:
        connection = HTTPConnection(host, port, timeout=5)
    try:
        connection.request("HEAD", "/favicon.ico")
        connection.getresponse()
    except ConnectionError:
        return False
    except (OSError, HTTPException):  # for example if it requires certificates of clients
        return True
    finally:
        connection.close()
    return True
