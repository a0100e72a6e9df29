"""A server with logins, whose realm answers over HTTP: every endpoint with every role."""

from __future__ import annotations

import sys

import pytest
import requests

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from .bundles import ROOT
from .realm import PASSWORD, ROLES, realm, serve_with_logins, table

pytestmark = pytest.mark.integration

# what an endpoint is asked for, so that nothing is there to be changed
NOTHING = {"image": "none", "label": "none", "id": "none", "output": "image"}
# what MONAI Label asks for besides the table
BESIDES = {("PUT", "/model/{model}"): "annotator", ("POST", "/proxy/dicom/wado/{path:path}"): "user"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server and its realm."""
    with realm() as asked, serve_with_logins(tmp_path_factory.mktemp("logins"), asked) as server:
        yield server, asked


@pytest.fixture(scope="module")
def server(served):
    return served[0]


@pytest.fixture(scope="module")
def tokens(served) -> dict[str, str]:
    """Of each role alone; an empty one of nobody."""
    return {"": "", **{role: served[1].token(role) for role in ROLES}}


def ask(server, method: str, path: str, token: str):
    for name in ("path:path", "model", "session_id", "strategy", "method"):
        path = path.replace(f"{{{name}}}", "none")
    return server.request(
        "GET" if method == "*" else method, f"{path}/x" if method == "*" else path, token, params=NOTHING
    )


def test_the_table_is_that_of_the_server():
    sys.path.insert(0, str(ROOT / "monailabel_app"))
    try:
        from lib.routes import ROUTES
    finally:
        sys.path.remove(str(ROOT / "monailabel_app"))
    assert table() == {key: route.who for key, route in ROUTES.items()}


@pytest.mark.parametrize("endpoint", table(), ids=" ".join)
def test_who_may_use_an_endpoint(served, tokens, endpoint):
    server, asked = served
    who = table()[endpoint]
    for role, token in tokens.items():
        if role == who and endpoint in BESIDES:
            token = asked.token(role, BESIDES[endpoint])
        status = ask(server, *endpoint, token).status_code
        if who == "nobody":
            assert status == 404, role
        elif who in ("anybody", role):
            assert status not in (401, 403) and status < 500, (role, status)
        else:
            assert status == (403 if role else 401), (role, status)


def test_tokens_that_the_realm_has_not_made(served):
    server, asked = served
    forged = asked.forged()
    for (method, path), who in table().items():
        if who not in ("anybody", "nobody"):
            for what, token in forged.items():
                assert ask(server, method, path, token).status_code == 401, (method, path, what)
    token = asked.token(*ROLES)
    for headers in ({"Authorization": f"Basic {token}"}, {"Authorization": token}, {"X-Authorization": token}):
        assert requests.get(f"{server.url}/info/", headers=headers, timeout=60).status_code == 401
    assert server.request("GET", "/info/", "", params={"token": token, "access_token": token}).status_code == 401
    assert server.request("GET", "/info/", "", cookies={"token": token}).status_code == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"realm_access": None},
        {"realm_access": ["monailabel-user"]},
        {"realm_access": {}},
        {"realm_access": {"roles": None}},
        {"realm_access": {"roles": "monailabel-user"}},
        {"realm_access": {"roles": {"monailabel-user": True}}},
        {"realm_access": {"roles": ["user", "MONAILABEL-USER", "monailabel-user "]}},
        {"realm_access": {"roles": [["monailabel-user"]]}},
        {"realm_access": {}, "roles": ["monailabel-user"], "resource_access": {"roles": ["monailabel-user"]}},
        {"preferred_username": None},
        {"preferred_username": ["ann"]},
    ],
    ids=str,
)
def test_tokens_without_a_name_or_roles_are_nobodys(served, claims):
    server, asked = served
    assert server.request("GET", "/info/", asked.token("user", **claims)).status_code in (401, 403)


def test_a_user_logs_in_by_name_and_password(served):
    server, asked = served
    assert server.request("GET", "/auth/", "").json() == {
        "enabled": True, "client_id": "monailabel-app", "realm": asked.url,
    }  # fmt: skip
    answer = server.request("POST", "/auth/token", "", data={"username": "user", "password": PASSWORD})
    token = answer.json()["access_token"]
    assert server.request("GET", "/auth/token/valid", token).json()["roles"] == ["monailabel-user"]
    assert server.request("GET", "/info/", token).json()["name"] == "medsaga"


def test_a_wrong_password_is_refused(server):
    answer = server.request("POST", "/auth/token", "", data={"username": "user", "password": "wrong"})
    assert answer.status_code == 401, answer.text


def test_the_log_is_for_administrators(server, tokens):
    for role, token in tokens.items():
        answer = server.request("GET", "/logs/", token, params={"lines": 20, "html": False})
        assert answer.status_code == (200 if role == "admin" else 403 if role else 401), role
        assert ("medsaga" in answer.text or "INFO" in answer.text) == (role == "admin")
    text = server.log.read_text(errors="replace")
    assert not [role for role, token in tokens.items() if token and token in text], "tokens are not logged"
