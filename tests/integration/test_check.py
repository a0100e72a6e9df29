"""The command by which a site sees that its server works, against real servers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from monailabel_app.check import ServerCheck, main

from .server import serve, small_bundle

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


def stored(server):
    """All that the server has stored but the state of its strategies."""
    files = {str(p.relative_to(server.studies)) for p in server.studies.rglob("*") if p.is_file()}
    sessions = {str(p) for p in (server.studies.parent / "sessions").rglob("*")}
    return {f for f in files if not f.startswith(".medsaga/hippocampus/phantom_")} | sessions


def outcomes(printed):
    """Outcome by step."""
    rows = [line.split("  ") for line in printed.splitlines()]
    return {row[0]: next(cell.strip() for cell in row[1:] if cell.strip()).split()[0] for row in rows if len(row) > 1}


def test_all_steps_pass_and_nothing_is_left(server, capsys):
    label = server.labels / "phantom_000.nii.gz"
    assert server.save_label("phantom_000", label).ok
    before, info = stored(server), server.info()["datastore"]
    assert main([server.url, "--train"]) == 0
    printed = capsys.readouterr().out
    assert outcomes(printed) == {
        "server answers": "ok",
        "models": "ok",
        "hippocampus segments": "ok",
        "hippocampus_prompt segments at a click": "ok",
        "hippocampus_propagate segments at a click": "ok",
        "stores and returns a label": "ok",
        "proposes the next image": "ok",
        "training starts and stops": "ok",
    }, printed
    assert printed.endswith("All steps are ok.\n")
    assert stored(server) == before
    assert server.info()["datastore"] == info
    assert server.training()["status"] == "STOPPED"


def test_a_running_training_is_left_alone(server, capsys):
    assert server.save_label("phantom_000", server.labels / "phantom_000.nii.gz").ok
    assert server.request("POST", "/train/hippocampus", json={"max_epochs": 10000}).ok
    try:
        assert main([server.url, "--train"]) == 1
        printed = capsys.readouterr().out
        assert "a training is running; it is left alone" in printed
        assert outcomes(printed)["training starts and stops"] == "failed"
        assert server.training()["status"] == "RUNNING"
    finally:
        server.request("DELETE", "/train/")
        server.wait_for_training()


def test_pictures_and_a_bundle_without_weights(tmp_path, capsys):
    bundle = small_bundle(tmp_path, "chest_xray", trained=False)
    with serve(tmp_path, bundle, cases=0) as server:
        assert main([server.url]) == 0
    printed = capsys.readouterr().out
    assert "chest_xray_prompt segments at a click" in printed
    assert "not trained yet: chest_xray" in printed
    assert outcomes(printed)["stores and returns a label"] == "ok", printed


def test_without_a_server_it_says_so(capsys):
    assert main(["http://127.0.0.1:9"]) == 1
    printed = capsys.readouterr().out
    assert outcomes(printed) == {"server answers": "failed"}
    assert "Is it running" in printed


def test_a_server_with_users(tmp_path, capsys):
    """MONAI Label's client keeps the headers of an upload for the requests after, if it has a token."""
    seen = []

    class Users(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length) if self.command != "GET" else b""
            seen.append((self.command, self.path, dict(self.headers), body))
            paths = {
                "/auth/": {"enabled": True},
                "/auth/token": {"token_type": "bearer", "access_token": "secret"},
            }
            content = json.dumps(paths.get(self.path, {"id": "x"})).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Users)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}"
    try:
        nobody = ServerCheck(url, tmp_path)
        assert nobody.run(train=False) == 1
        assert "--username" in capsys.readouterr().out
        check = ServerCheck(url, tmp_path, "ann", "pass")
        check._login()
        assert b"username=ann&password=pass" in seen[-1][3]
        file = tmp_path / "x.nii.gz"
        file.write_bytes(b"x")
        check.client.upload_image(str(file), "x")
        check.client.info()
    finally:
        http.shutdown()
    headers = {key.lower(): value for key, value in seen[-1][2].items()}
    assert headers["authorization"] == "bearer secret"
    assert "content-length" not in headers
    assert "content-type" not in headers
