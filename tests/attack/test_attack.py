"""A short attack; the long one is ``python -m tests.attack --requests 5000``."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from ..integration.realm import ROLES, realm
from .logins import Logins
from .payloads import KINDS, Raw, payload
from .run import Attack
from .store import StoreMissingError
from .wire import Answer, Shot, as_json

pytestmark = pytest.mark.integration


def test_300_requests_of_all_kinds(tmp_path):
    report = Attack(tmp_path, requests=300, seed=0, batch=150).run()
    assert not report.faults, report.table()
    assert report.requests == 300
    assert len(report.statuses) >= 50, "routes of MONAI Label"
    assert set(KINDS) < set(report.kinds)
    assert report.scenes == ["at once", "slow clients"]
    for route in ("POST /infer/{model}", "POST /activelearning/{strategy}", "PUT /datastore/label", "PUT /session/"):
        assert report.good[route][200], f"{route} takes no request that is right:\n{report.table()}"
    json.loads(report.json())


def test_requests_to_a_server_on_a_dicom_store(tmp_path):
    try:
        report = Attack(tmp_path, requests=40, seed=1, dicom=True).run()
    except (StoreMissingError, PermissionError) as err:
        pytest.skip(f"{err}")
    assert not report.faults, report.table()
    assert {"DICOM PatientName", "DICOM SEG SegmentLabel"} < report.expressions
    assert report.statuses["POST /proxy/dicom/wado/{path}"][200], report.table()


@pytest.fixture(scope="module")
def asked():
    with realm() as running:
        yield running


def test_requests_with_all_kinds_of_tokens(tmp_path):
    report = Attack(tmp_path, requests=150, seed=0, logins=True).run()
    assert not report.faults, report.table()
    assert {*ROLES, "all", "none", "expired", "alg none", "HS256 by the public key"} < set(report.logins)
    assert report.logins["expired"][401] and report.logins["reviewer"][403] and report.logins["all"][200]


@pytest.mark.parametrize(
    "login, status, wrong",
    [
        *(("admin", 200, False), ("admin", 422, False), ("admin", 403, True), ("user", 200, True), ("user", 422, True)),
        *(("user", 403, False), ("expired", 200, True), ("expired", 401, False), ("alg none", 404, True)),
    ],
)
def test_an_answer_to_the_wrong_role_is_a_fault(asked, login, status, wrong):
    logins = Logins(asked, "m", np.random.default_rng(0))
    shot = Shot("POST /train/{model}", "POST", "/train/a", field="(body)", inside=("model",), login=login)
    assert bool(logins.judge(shot, Answer(status))) == wrong


def test_payloads_are_the_same_for_a_seed_and_most_are_json():
    for kind in KINDS:
        first, second = ([payload(kind, np.random.default_rng(n), "m") for n in range(60)] for _ in range(2))
        assert first == second
        plain = [value for value in first if not isinstance(value, Raw)]
        assert all(isinstance(as_json({"a": [value]}), bytes) for value in first)
        assert all(json.loads(as_json({"a": [value]})) == {"a": [value]} for value in plain)
        assert len(set(map(as_json, first))) >= 5
