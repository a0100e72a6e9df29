"""Finished objects over HTTP: submitted or prompted, in the datastore and in sessions; what is kept of the model."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from ..waiting import until
from .server import read_mask, serve

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

pytestmark = pytest.mark.integration

PROMPT, WHOLE, AUTOMATIC = "hippocampus_prompt", "hippocampus_propagate", "hippocampus"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("finished"), cases=5) as running:
        yield running


@pytest.fixture
def mask(server, tmp_path):
    def ask(model, image, session="", /, **params):
        answer = server.infer(model, image, session, **params)
        assert answer.ok, answer.text
        return read_mask(answer.content, tmp_path)

    return ask


def params_of(server, model, image, **params):
    query = {"image": image, "output": "json"}
    return server.request("POST", f"/infer/{model}", params=query, data={"params": json.dumps(params)}).json()


def truth(server, image):
    return np.asarray(nib.load(server.labels / f"{image}.nii.gz").dataobj)


def proposal(server, image, folder):
    query = {"label": image, "tag": "original"}
    return read_mask(server.request("GET", "/datastore/label", params=query).content, folder)


def test_a_submitted_label_is_left_as_it_is(server, mask, tmp_path):
    label, image = truth(server, "phantom_001"), "phantom_001"
    assert server.save_label(image, server.labels / f"{image}.nii.gz").ok
    inside = np.argwhere(label == 1)[0].tolist()
    refused = server.infer(PROMPT, image, label="posterior", foreground=[inside])
    assert refused.status_code == 422 and "lies in anterior" in refused.json()["detail"]
    free = np.argwhere(label == 0)[0].tolist()
    for model in (PROMPT, WHOLE):
        answer = mask(model, image, label="posterior", foreground=[free], roi=[0, 23, 0, 31, free[2], free[2]])
        assert answer.any() and not (answer[label == 1]).any()
    posterior = answer.astype(bool)  # the whole of it takes the place of what was submitted
    automatic = mask(AUTOMATIC, image)
    np.testing.assert_array_equal(automatic == 1, label == 1)
    np.testing.assert_array_equal(automatic == 2, posterior)
    assert params_of(server, AUTOMATIC, image)["kept"] == ["anterior", "posterior"]
    assert mask(PROMPT, image, label="posterior", foreground=[inside], replace=True)[tuple(inside)]
    # who submits says what counts from now on
    assert server.save_label(image, server.labels / f"{image}.nii.gz").ok
    np.testing.assert_array_equal(mask(AUTOMATIC, image), label)


def test_what_the_server_keeps_is_the_models_own(server, mask, tmp_path):
    image = "phantom_000"
    box = [2, 20, 3, 28, 4, 4]
    prompted = mask(WHOLE, image, label="anterior", roi=box).astype(bool)
    answer = mask(AUTOMATIC, image)
    np.testing.assert_array_equal(answer == 1, prompted)
    kept = proposal(server, image, tmp_path)
    own = mask(AUTOMATIC, image, replace=True)
    np.testing.assert_array_equal(kept, own)
    assert (own != answer).any(), "else there was nothing to keep apart"
    np.testing.assert_array_equal(proposal(server, image, tmp_path), own)
    label = "phantom_002"
    assert server.save_label(label, server.labels / f"{label}.nii.gz").ok
    answer = server.request("POST", f"/batch/infer/{AUTOMATIC}", params={"images": "all", "run_sync": True}, json={})
    assert answer.ok, answer.text
    for of in (image, label):
        np.testing.assert_array_equal(proposal(server, of, tmp_path), mask(AUTOMATIC, of, replace=True))
    # a file is removed after its answer was sent
    until(lambda: not list((server.log.parent / "tmp").rglob("*.nii.gz")), 20, why=lambda: "a mask's file is left")


def test_a_session_has_its_own(server, mask):
    image = server.studies / "phantom_003.nii.gz"
    sessions = []
    for _ in range(2):
        with open(image, "rb") as content:
            answer = server.request("PUT", "/session/", files={"files": (image.name, content)})
        sessions.append(answer.json()["session_id"])
    box = [2, 20, 3, 28, 4, 4]
    prompted = mask(WHOLE, "", sessions[0], label="anterior", roi=box).astype(bool)
    inside = np.argwhere(prompted)[0].tolist()
    refused = server.infer(PROMPT, "", sessions[0], label="posterior", foreground=[inside])
    assert refused.status_code == 422 and "anterior" in refused.json()["detail"]
    for of in (("", sessions[1]), ("phantom_003", "")):
        assert mask(PROMPT, *of, label="posterior", foreground=[inside])[tuple(inside)]


def test_planes_and_scribbles_are_asked_for(server, mask):
    click = [12, 16, 6]
    found = mask(PROMPT, "phantom_004", foreground=[click], plane="sagittal")
    assert np.unique(np.nonzero(found)[0]).tolist() == [12] and found[tuple(click)]
    line = [{"inside": True, "points": [[8, 16, 6], [15, 16, 6]]}, {"inside": False, "points": [[3, 3, 6]]}]
    found = mask(PROMPT, "phantom_004", scribbles=line)
    assert found[8:16, 16, 6].all() and not found[3, 3, 6]
    for params, why in [
        ({"foreground": [click], "plane": "oblique"}, "params, plane"),
        ({"scribbles": [{"points": [click]}]}, "params, scribbles"),
        ({"foreground": [click], "replace": "perhaps"}, "params, replace"),
    ]:
        answer = server.infer(PROMPT, "phantom_004", **params)
        assert answer.status_code == 422 and why in answer.json()["detail"]


def test_options_are_shown_and_the_weights_that_answered(server):
    models = server.info()["models"]
    assert models[AUTOMATIC]["config"]["replace"] is False
    config = models[WHOLE]["config"]
    assert config["replace"] is False and config["plane"][0] == "auto"
    assert config["model_filename"] == ["best", "model.pt", "published"]
    asked = {"foreground": [[12, 16, 6]], "device": "cpu"}
    for filename, answered in ((None, "model.pt"), ("best", "model.pt"), ("published", "published")):
        more = {"model_filename": filename} if filename else {}
        assert params_of(server, PROMPT, "phantom_004", **asked, **more)["weights"] == answered
