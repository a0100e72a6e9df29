"""No log line has what identifies a patient, whoever writes it and however it is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lib.logs import without_persons
from pydicom.dataset import Dataset

APP = Path(__file__).parents[2] / "monailabel_app"
TELLING = {
    "PatientName": "MUELLER^HANNELORE",
    "PatientID": "MUELLER-1938",
    "PatientBirthDate": "19380412",
    "AccessionNumber": "ACC-MUELLER",
    "OtherPatientIDs": "MUELLER-2",
    "ReferringPhysicianName": "DR^MUELLER",
}
PLAIN = {"Modality": "MR", "PatientSex": "F", "PatientAge": "085Y", "ImagePositionPatient": [1, 2, 3]}


def printed() -> dict[str, str]:
    data = Dataset()
    for keyword, value in {**TELLING, **PLAIN}.items():
        setattr(data, keyword, value)
    request = json.dumps({**TELLING, "model": "hippocampus"})
    return {
        "a dictionary": f"Next sample: {TELLING | PLAIN}",
        "JSON": json.dumps(TELLING | PLAIN, indent=2),
        "JSON within JSON": json.dumps({"request": request, **PLAIN}),
        "DICOM JSON": json.dumps(data.to_json_dict()),
        "a data set": str(data),
        "an address": "GET /proxy/qido/studies?PatientName=MUELLER%5EH&00100020=MUELLER&00080050=ACC-MUELLER&limit=1",
        "an encoded address": "GET /x?PatientID%3DMUELLER-1938&a=1",
        "key and value": "PatientID: MUELLER-1938, PatientName=MUELLER^HANNELORE; Patient's Name: MUELLER HANNELORE",
        "a list": f"OtherPatientIDs={[TELLING['PatientID']]} OtherPatientNames: {[['MUELLER']]}",
        "another spelling": "{'patient_id': 'MUELLER', 'patient name': \"O'MUELLER\", 'AccessionNo': 1}",
        "a bad value": "Invalid value for VR LO: 'MUELLER-1938'. Please see <https://dicom.nema.org>",
    }


@pytest.mark.parametrize("what", printed())
def test_identifiers_are_left_out(what):
    clean = without_persons(printed()[what])
    assert not any(part in clean for part in ("MUELLER", "HANNELORE", "19380412")), clean
    assert "(not logged)" in clean


@pytest.mark.parametrize(
    "text",
    [
        "ImagePositionPatient: [1, 2, 3]; PatientSex: F, PatientAge: 085Y",
        "Saving Label for 1.2.826.0.1 for tag: final by ann",
        "3 patients, patient of phantom_000",
        "%(asctime)s {'a': 1}",
    ],
)
def test_everything_else_is_left_as_it_is(text):
    assert without_persons(text) == text


def test_every_logger_handler_traceback_and_warning_of_a_process_leaves_them_out():
    """In a process of its own, as what is logged is set for all of it."""
    code = """
import logging, logging.config, sys, warnings
sys.path.insert(0, sys.argv[1])
logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")
early = logging.getLogger("early")
early.propagate = False
early.addHandler(logging.StreamHandler(sys.stdout))
from lib.logs import keep_persons_out
keep_persons_out()
keep_persons_out()
late = logging.getLogger("late")
late.propagate = False
late.addHandler(logging.StreamHandler(sys.stdout))
value = {"PatientID": "MUELLER-1938"}
early.warning(f"f-string {value}")
late.warning("argument %s of %d", value, 1)
logging.getLogger("root's").warning("%(PatientID)s", {"PatientID": "kept: a template names no attribute"})
try:
    raise ValueError(f"cannot read {value}")
except ValueError:
    logging.getLogger("traced").exception("failed")
warnings.warn("Invalid value for VR LO: 'MUELLER-1938'.")
late.warning("%s %s", "too few")
logging.getLogger("uvicorn.access").warning('%s - "%s"', "127.0.0.1", "GET /x?PatientName=MUELLER")
from uvicorn.logging import AccessFormatter
access = logging.getLogger("access")
access.propagate = False
access.addHandler(logging.StreamHandler(sys.stdout))
access.handlers[0].setFormatter(AccessFormatter('%(client_addr)s %(request_line)s', use_colors=False))
access.warning('%s - "%s %s HTTP/%s" %d', "127.0.0.1", "GET", "/x?PatientName=MUELLER&a=1", "1.1", 200)
"""
    done = subprocess.run([sys.executable, "-c", code, str(APP)], capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "MUELLER" not in done.stdout, output
    for kept in (
        "f-string {'PatientID': (not logged)}",
        "argument {'PatientID': (not logged)} of 1",
        "ValueError: cannot read {'PatientID': (not logged)}",
        "127.0.0.1 GET /x?PatientName=(not logged)&a=1 HTTP/1.1",
        "Invalid value for VR LO: (not logged)",
    ):
        assert kept in done.stdout, output
