"""The gate before the app: endpoints of the table only, roles, sizes; and the table in the documentation."""

import os
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from lib.gate import guard
from lib.routes import ROUTES
from monailabel.config import settings
from monailabel.endpoints.user import auth

from .. import forks

ROOT = Path(__file__).resolve().parents[2]

_LIST = """
import json, sys
sys.path.insert(0, "monailabel_app")
from lib.gate import routes_of
from fastapi.routing import iter_route_contexts
import monailabel.app
roles = {}
for route in iter_route_contexts(monailabel.app.app.routes):
    for part in getattr(getattr(route, "dependant", None), "dependencies", []):
        if hasattr(part.call, "roles"):
            roles.update({f"{method} {route.path}": part.call.roles for method in route.methods})
print("ROUTES", json.dumps([[*map(list, routes_of(monailabel.app.app))], roles]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Routes of MONAI Label's app as it is installed, with logins, and the roles that it asks for."""
    import json

    words = [sys.executable, "-c", _LIST]
    said = tmp_path_factory.mktemp("routes") / "said"
    code = forks.start(words, said, ROOT, {**os.environ, "MONAI_LABEL_AUTH_ENABLE": "true"}).wait(300)
    assert code == 0, said.read_text()
    routes, roles = json.loads(said.read_text().split("ROUTES ")[1].splitlines()[0])
    return {tuple(route) for route in routes}, roles


def test_every_endpoint_of_monai_label_stands_in_the_table(installed):
    routes, _ = installed
    assert routes - set(ROUTES) == set(), "new endpoints: decide who may use them, or close them"
    assert set(ROUTES) - routes == set(), "endpoints that are no more"


def test_the_table_asks_for_no_less_than_monai_label(installed):
    _, roles = installed
    rank = ["anybody", "user", "annotator", "admin", "nobody"]
    for (method, path), route in ROUTES.items():
        theirs = roles.get(f"{method} {path}", "anybody").removeprefix("monailabel-")
        assert rank.index(route.who) >= rank.index(theirs), (method, path)
        assert (
            route.who == "nobody"
            or route.who == theirs
            or path in ("/model/{model}", "/auth/token/valid")
            or (path.startswith("/proxy") and method == "POST")
        ), (method, path)


def test_the_table_stands_in_the_documentation():
    text = (ROOT / "docs" / "administrator.md").read_text()
    for (method, path), route in ROUTES.items():
        assert f"| `{method} {path}` | {route.who} | {route.checked} |" in text


@pytest.fixture
def client(monkeypatch):
    """An app with endpoints of the table's names, and one that is not in it."""
    monkeypatch.setenv("MEDSAGA_MAX_UPLOAD_GB", "0.002")
    app = FastAPI()

    async def size(request: Request) -> int:
        return len(await request.body())

    for method, path in [("GET", "/info/"), ("GET", "/new"), ("PUT", "/session/"), ("POST", "/train/{model}")]:
        app.add_api_route(path, size, methods=[method])
    app.add_api_route("/proxy/dicom/wado/{path:path}", size, methods=["GET", "POST"])
    client = TestClient(app, base_url="http://127.0.0.1")
    with client:
        guard(app, "127.0.0.1")
        yield client


def test_what_is_not_in_the_table_is_closed(client, caplog):
    assert client.get("/info/").status_code == 200
    assert client.get("/new").status_code == 404
    assert "GET /new is closed" in "".join(record.getMessage() for record in caplog.get_records("setup"))
    assert client.get("/nothing").status_code == 404


def test_sizes(client):
    assert client.post("/train/x", content=b"x" * 2**20).json() == 2**20
    assert client.post("/train/x", content=b"x" * (2**20 + 1)).status_code == 413
    assert client.put("/session/", content=b"x" * 2_000_000).json() == 2_000_000
    assert client.put("/session/", content=b"x" * 2_000_001).status_code == 413
    chunks = (b"x" * 10**5 for _ in range(30))  # its length is not said before
    assert client.put("/session/", content=chunks).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "studies",
        "studies/1.2.3/series",
        "studies/1.2/series/3.4/instances/5.6/frames/1,2",
        "series/1/metadata",
        "instances",
    ],
)
def test_resources_of_dicomweb_are_passed_on(client, monkeypatch, path):
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:1/dicom-web")
    assert client.get(f"/proxy/dicom/wado/{path}").status_code == 200
    assert client.post(f"/proxy/dicom/wado/{path}").status_code == (200 if path == "studies" else 404)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "/a/folder")
    assert client.get(f"/proxy/dicom/wado/{path}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["", "system", "tools/execute-script", "studies/%2e%2e/%2e%2e/system", "..%2f..%2fsystem",
     "studies/..%2f..%2fsystem", "studies/.../x", "studies%3fa=b", "studies%23x", "studies/a%00b", "studies//x",
     "studies/%5c..", "@evil.example/studies", "http:%2f%2fevil.example%2fstudies", "studies/%252e%252e/x",
     "studies/1%0d%0aX: y"],
)  # fmt: skip
def test_other_addresses_of_the_store_are_not(client, monkeypatch, path):
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:1/dicom-web")
    for method in ("GET", "POST"):
        assert client.request(method, f"/proxy/dicom/wado/{path}").status_code == 404


def test_roles_are_asked_for_where_there_are_logins(client, monkeypatch):
    def from_token(token: str) -> auth.User:
        if not token:
            raise auth.InvalidTokenError
        return auth.User(username=token, roles=[f"monailabel-{token}"])

    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "from_token", from_token)  # MONAI Label's check of tokens has its tests: test_auth.py
    for path, token, expected in [
        ("/info/", "", 401), ("/info/", "user", 200), ("/info/", "admin", 403),
        ("/train/x", "user", 403), ("/train/x", "admin", 200),
    ]:  # fmt: skip
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        method = "POST" if path == "/train/x" else "GET"
        assert client.request(method, path, headers=headers).status_code == expected, (path, token)
