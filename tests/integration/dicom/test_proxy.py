"""OHIF, the panel and the API behind a reverse proxy: at a path, and at another port (docs/administrator.md)."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from ..bundles import ROOT
from ..server import wait_for
from .geometry import at_series, stored_segs
from .services import _process
from .test_ohif import annotate, browser, dice, in_series  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("clean")]

PORT, PROXY_PORT = 8011, 8843
URL = f"http://127.0.0.1:{PROXY_PORT}/label"


async def _forward(client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
    """One request, with ``/label`` taken off its path and everything else as it is, ``Host`` too."""
    try:
        server_in, server_out = await asyncio.open_connection("127.0.0.1", PORT)
        head = await client_in.readuntil(b"\r\n\r\n")
        method, path, rest = head.split(b" ", 2)
        if not path.startswith(b"/label/"):
            client_out.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        lines = [line for line in rest.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        lines.insert(1, b"Connection: close")
        server_out.write(b" ".join([method, path.removeprefix(b"/label"), b"\r\n".join(lines)]))

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(2**16):
                target.write(data)
                await target.drain()

        sending = asyncio.ensure_future(pump(client_in, server_out))
        await pump(server_in, client_out)
        sending.cancel()
        server_out.close()
    except (OSError, asyncio.IncompleteReadError):  # the browser went away
        pass
    finally:
        client_out.close()


@pytest.fixture(scope="module")
def proxy(store, bundles, work) -> Iterator[str]:
    """The app's server with ``--root_path /label``, and a proxy before it; yields the address for browsers."""
    folder = work / "proxied"
    folder.mkdir()
    words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(ROOT / "monailabel_app")]
    words += ["--studies", store, "--host", "127.0.0.1", "--port", str(PORT), "--root_path", "/label"]
    words += ["--conf", "models", str(bundles["hippocampus"])]
    environment = {
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    loop = asyncio.new_event_loop()
    log = folder / "server.log"
    with _process(words, log, environment, cwd=folder) as process:
        wait_for(f"http://127.0.0.1:{PORT}/info/", process, log, seconds=180)
        listening = loop.run_until_complete(asyncio.start_server(_forward, "127.0.0.1", PROXY_PORT))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        yield URL
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_the_api_and_the_store_answer_at_the_path(proxy, cases):
    assert requests.get(f"{proxy}/info/", timeout=60).json()["name"] == "medsaga"
    assert requests.get(f"{proxy}/info", timeout=60).url == f"{proxy}/info/", "sent on within the path"
    studies = requests.get(f"{proxy}/proxy/dicom/qido/studies", timeout=60).json()
    assert len(studies) == len(cases)
    own = {"Origin": f"http://127.0.0.1:{PROXY_PORT}"}
    assert requests.get(f"{proxy}/info/", headers=own, timeout=60).ok
    assert requests.get(f"{proxy}/info/", headers={"Origin": "http://127.0.0.1:8000"}, timeout=60).status_code == 403
    for path in ("..%2fsystem", "%2e%2e/system", "..%2f..%2ftools%2fexecute-script"):
        for method in ("GET", "POST"):
            answer = requests.request(method, f"{proxy}/proxy/dicom/wado/{path}", timeout=60)
            assert answer.status_code == 404 and "DICOMweb" in answer.text, "the store's own addresses stay closed"


def test_an_annotator_segments_and_submits_through_the_proxy(browser, proxy, cases, tmp_path):  # noqa: F811
    case = cases["mr"]
    parts = ["studies", "connected", "automatic", "points", "box", "submitted"]
    seen = annotate(parts, case, proxy, browser, tmp_path)
    assert set(seen["patients"]) == {f"PHANTOM-{name}" for name in cases}
    assert dice(in_series(seen["automatic"]["volume"], case) > 0, case.label > 0) > 0.7
    assert set(seen["answers"].values()) == {200}
    (seg,) = stored_segs(case.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["anterior", "posterior"]
    training = requests.get(f"{proxy}/datastore/", params={"output": "train"}, timeout=60).json()
    stored = at_series(Path(training[0]["label"]), case.series)
    np.testing.assert_array_equal(stored, in_series(seen["submitted"]["volume"], case))
