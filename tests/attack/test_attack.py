"""A short attack; the long one is ``python -m tests.attack --requests 5000``."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from .payloads import KINDS, Raw, payload
from .run import Attack
from .wire import as_json

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


def test_payloads_are_the_same_for_a_seed_and_most_are_json():
    for kind in KINDS:
        first, second = ([payload(kind, np.random.default_rng(n), "m") for n in range(60)] for _ in range(2))
        assert first == second
        plain = [value for value in first if not isinstance(value, Raw)]
        assert all(isinstance(as_json({"a": [value]}), bytes) for value in first)
        assert all(json.loads(as_json({"a": [value]})) == {"a": [value]} for value in plain)
        assert len(set(map(as_json, first))) >= 5
