"""A session on a DICOM store leaves no patient in the server's log."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pydicom
import pytest
import requests

from .geometry import write_label
from .services import SERVER

pytestmark = pytest.mark.integration

VOLUME = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]


def ask(method: str, path: str, **options) -> requests.Response:
    return requests.request(method, f"{SERVER}{path}", timeout=120, **options)


def a_session(case, folder: Path) -> None:
    """All that annotators' clients do with an image, and some requests that go wrong."""
    uid, patient = case.series.uid, {"PatientID": case.patient_id, "PatientName": case.patient_name}
    for strategy in ("random", "first"):
        for _ in range(6):  # one image after the other
            assert ask("POST", f"/activelearning/{strategy}", json={"client_id": "ann"}).ok
    for model, params in {"hippocampus": {}, "hippocampus_prompt": {"foreground": [[10, 10, 5]]}}.items():
        ask("POST", f"/infer/{model}", params={"image": uid, "output": "image"}, data={"params": json.dumps(params)})
    label = {"label": ("l.nii.gz", Path(write_label(folder / "l.nii.gz", case.label, case.series)).read_bytes())}
    saved = ask(
        "PUT",
        "/datastore/label",
        params={"image": uid},
        data={"params": json.dumps({"label_info": VOLUME, **patient})},
        files=label,
    )
    assert saved.ok or saved.status_code == 422, saved.text  # 422: what names patients is no field
    info = {"image": uid}
    ask("PUT", "/datastore/image/info", params=info, data={"info": json.dumps(patient)})
    for path in ("/datastore/image/info", "/datastore/", "/info/"):
        ask("GET", path, params={**info, "output": "all"})
    for op in ("qido/", "wado/", "stow/", ""):
        ask("GET", f"/proxy/dicom/{op}studies", params=patient)
        ask("GET", f"/proxy/dicom/{op}none/{patient['PatientID']}", params=patient)
    ask("POST", "/infer/hippocampus", params={"image": uid}, data={"params": json.dumps(patient)})
    ask("POST", "/train/hippocampus", json={"max_epochs": 1, **patient})
    ask("POST", "/train/hippocampus", json={"max_epochs": 1})
    for _ in range(240):
        state = ask("GET", "/train/")
        if state.json().get("status") not in ("RUNNING", "SUBMITTED"):
            break
        time.sleep(0.5)


@pytest.fixture
def telling(cases):
    """A case of the store, with what its files say of the patient."""
    case = cases["mr"]
    file = pydicom.dcmread(case.series.files[0], stop_before_pixels=True)
    case.patient_id, case.patient_name, case.birth = file.PatientID, str(file.PatientName), file.PatientBirthDate
    assert "PHANTOM" in case.patient_id and case.patient_id in case.patient_name
    return case


def test_no_patient_is_logged(server, telling, clean, same_weights, tmp_path):
    a_session(telling, tmp_path)
    shown = ask("GET", "/logs/", params={"lines": 300, "html": False})
    log = server.read_text(errors="replace")
    told = [telling.patient_id.removesuffix("mr"), "Phantom^", "Ünal", telling.birth]  # of all cases' patients
    found = [line[:200] for line in log.splitlines() if any(what in line for what in told)]
    assert not found, found[:5]
    assert telling.series.uid in log, "what happened is logged, by the series' UID"
    if shown.ok:
        assert not any(what in shown.text for what in told)
