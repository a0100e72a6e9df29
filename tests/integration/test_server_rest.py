"""Every call that the Slicer plugin's client makes, against a real server; and where its masks lie in space."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ..waiting import until
from .server import Server, serve, small_bundle

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")
from lib.model_versions import Versions
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("rest"), cases=5) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory) -> MONAILabelClient:
    return MONAILabelClient(server.url, str(tmp_path_factory.mktemp("client")), "annotator-1")


def _image(server: Server, name: str = "phantom_000") -> Path:
    return server.studies / f"{name}.nii.gz"


def test_info_lists_models_training_strategies_and_scoring(client):
    info = client.info()
    assert info["models"]["hippocampus"]["type"] == "segmentation"
    assert info["models"]["hippocampus"]["dimension"] == 3
    assert info["models"]["hippocampus"]["labels"] == {"anterior": 1, "posterior": 2}
    assert info["models"]["hippocampus_prompt"]["type"] == "deepgrow"
    assert info["labels"] == ["anterior", "posterior"]
    assert list(info["trainers"]) == ["hippocampus"]
    assert {"random", "first", "entropy", "disagreement", "diversity", "representative", "mixed"} <= set(
        info["strategies"]
    )
    assert {"dice", "hd95"} <= set(info["scoring"])
    assert info["datastore"]["total"] >= 5


def test_next_sample_is_an_unlabelled_image_with_its_path(client, server):
    sample = client.next_sample("first", {})
    assert Path(sample["path"]) == _image(server, sample["id"])


def test_infer_by_id_file_and_session_agree(client, server):
    image = _image(server)
    by_id, _ = client.infer("hippocampus", "phantom_000", {})
    by_file, _ = client.infer("hippocampus", "", {}, file=str(image))
    session = client.create_session(str(image))["session_id"]
    assert client.get_session(session)["name"] == session
    in_session, _ = client.infer("hippocampus", "", {}, session_id=session)
    client.remove_session(session)
    with pytest.raises(MONAILabelClientException):
        client.get_session(session)
    masks = [nib.load(path) for path in (by_id, by_file, in_session)]
    for mask in masks:
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(masks[0].dataobj))
        np.testing.assert_allclose(mask.affine, nib.load(image).affine, atol=1e-4)
        assert mask.shape == nib.load(image).shape


def test_labels_are_saved_fetched_and_counted(client, server):
    truth = server.labels / "phantom_001.nii.gz"
    before = client.info()["datastore"]["completed"]
    names = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]
    client.save_label("phantom_001", str(truth), params={"label_info": names})
    fetched = client.download_label("phantom_001", "final")
    np.testing.assert_array_equal(np.asarray(nib.load(fetched).dataobj), np.asarray(nib.load(truth).dataobj))
    assert client.info()["datastore"]["completed"] == before + 1
    stored = client.datastore()["objects"]["phantom_001"]
    assert "final" in stored["labels"]


def test_an_image_is_uploaded_and_removed(server, client):
    client.upload_image(str(_image(server)), image_id="uploaded")
    assert "uploaded" in client.datastore()["objects"]
    assert server.request("DELETE", "/datastore/", params={"id": "uploaded"}).ok
    assert "uploaded" not in client.datastore()["objects"]


def test_training_starts_reports_and_stops(client, server):
    for name in ("phantom_002", "phantom_003"):
        client.save_label(name, str(server.labels / f"{name}.nii.gz"))
    served = (server.bundle / "models" / "model.pt").read_bytes()
    assert server.training() == {}
    client.train_start("hippocampus", {"max_epochs": 500})
    assert server.training()["status"] in ("RUNNING", "SUBMITTED")
    # MONAI Label loses a stop that comes before the process is there
    until(server.training_processes)
    client.train_stop()
    assert server.wait_for_training()["status"] == "STOPPED"
    assert (server.bundle / "models" / "model.pt").read_bytes() == served, "a stopped training changes nothing"


def test_update_model_as_ohif_asks_for_it(server):
    """It posts {} to /train/ and reads epoch, total_epochs, total_time and best_metric of the statistics."""
    assert server.request("POST", "/train/", json={"hippocampus": {"max_epochs": 1}}).ok
    state = server.wait_for_training()
    assert state["status"] == "DONE", state["details"]
    stats = server.info()["train_stats"]["hippocampus"]
    assert stats["epoch"] == stats["total_epochs"] == 1
    assert stats["total_time"] and 0 <= stats["best_metric"] <= 1
    assert stats["message"].startswith("model_v")
    versions = json.loads((server.bundle / "models" / "versions.json").read_text())
    assert versions[0]["note"] == "found in models/", "what was served can be brought back"
    assert all(0 < versions[1][f"{whose}prompt_score"] <= 1 for whose in ("", "published_"))
    assert len(server.info()["models"]["hippocampus"]["config"]["model_filename"]) == 3


@pytest.mark.parametrize("by_version", [False, True])
def test_versions_can_be_chosen_and_others_not(server, by_version):
    filename = "model_v1.pt" if by_version else "model.pt"
    assert server.infer("hippocampus", "phantom_000", model_filename=filename).ok
    refused = server.infer("hippocampus", "phantom_000", model_filename="../../hippocampus_sam.pt")
    assert refused.status_code == 404 and "has no weights" in refused.json()["detail"]


@pytest.mark.parametrize(("own", "published"), [(0.7, 0.6), (0.6, 0.7), (None, None)])
def test_the_page_shows_which_weights_answer_prompts(server, own, published):
    versions = Versions(server.bundle / "models")
    versions.serve("model_v2.pt")
    index = versions.models_dir / "versions.json"
    before = index.read_text()
    entries = json.loads(before)
    entries[1] |= {"prompt_score": own, "published_prompt_score": published, "held_back": ["phantom_003.nii.gz"]}
    index.write_text(json.dumps(entries))
    page = server.request("GET", "/").text
    params = json.dumps({"foreground": [[12, 16, 6]]})
    query = {"image": "phantom_000", "output": "json"}
    answer = server.request("POST", "/infer/hippocampus_prompt", params=query, data={"params": params}).json()
    index.write_text(before)
    versions.serve("model_v1.pt")
    expected = {
        0.7: "model_v2.pt (Dice: model_v2.pt 0.700, published 0.600)",
        0.6: "published weights (Dice: model_v2.pt 0.600, published 0.700)",
        None: "model_v2.pt",
    }
    assert "<th>Prompts answered by</th>" in page and f"<td>{expected[own]}</td>" in page
    assert answer["weights"] == ("published" if own == 0.6 else "model_v2.pt")


def test_batch_inference_on_a_cpu(server):
    answer = server.request("POST", "/batch/infer/hippocampus", params={"images": "all", "run_sync": True}, json={})
    assert answer.ok, answer.text
    assert all(result["label"] for result in answer.json().values())
    assert server.info()["datastore"]["label_tags"]["original"] == len(answer.json())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/infer/none?image=phantom_000"),
        ("POST", "/infer/hippocampus?image=none"),
        ("POST", "/activelearning/none"),
        ("POST", "/train/none"),
        ("POST", "/batch/infer/none?images=all"),
        ("POST", "/scoring/none?run_sync=true"),
    ],
)
def test_what_is_unknown_is_not_found(server, method, path):
    answer = server.request(method, path)
    assert answer.status_code == 404 and "none" in answer.json()["detail"]


def test_slices_are_named_of_images_that_are_there(server):
    def ask(image):
        return server.request("POST", "/activelearning/first", json={"image": image, "slices": 2})

    answer = ask("phantom_001").json()
    assert answer["id"] == "phantom_001" and len(answer["slices"]) == 2
    assert ask("none").status_code == 404 and ask("../studies/phantom_001").status_code == 400


def _oblique(image: nib.Nifti1Image) -> nib.Nifti1Image:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return nib.Nifti1Image(np.asarray(image.dataobj), turn @ np.diag([1, 1.5, 2.5, 1]) @ image.affine)


_VIEWS = {
    "flipped": lambda image: image.as_reoriented([[0, -1], [1, 1], [2, -1]]),
    "permuted": lambda image: image.as_reoriented([[1, 1], [2, -1], [0, 1]]),
    "oblique and anisotropic": _oblique,
}


@pytest.mark.parametrize("view", _VIEWS)
@pytest.mark.parametrize("prompted", [False, True])
def test_masks_lie_where_the_image_lies(server, tmp_path, view, prompted):
    """The same voxels, stored in another orientation or turned in space, get the same mask on their own grid."""
    original = nib.load(_image(server))
    turned = _VIEWS[view](original)
    nib.save(turned, tmp_path / "turned.nii.gz")
    name = f"turned_{'_'.join(view.split())}_{prompted}"
    assert server.add_image(name, tmp_path / "turned.nii.gz").ok

    def mask(image: str, grid: nib.Nifti1Image) -> nib.Nifti1Image:
        params = {}
        if prompted:
            # the same place in space, or for the turned image the same voxels
            voxel = np.array([12, 16, 6, 1.0])
            if view != "oblique and anisotropic":
                voxel = np.linalg.inv(grid.affine) @ original.affine @ voxel
            params = {"foreground": [np.round(voxel[:3]).astype(int).tolist()], "label": "anterior"}
        answer = server.infer("hippocampus_prompt" if prompted else "hippocampus", image, **params)
        assert answer.ok, answer.text
        (tmp_path / f"{image}.nii.gz").write_bytes(answer.content)
        return nib.load(tmp_path / f"{image}.nii.gz")

    expected = mask("phantom_000", original)
    found = mask(name, turned)
    assert found.shape == turned.shape
    np.testing.assert_allclose(found.affine, turned.affine, atol=1e-4)
    assert np.asarray(expected.dataobj).any(), "an empty mask would prove nothing"
    reference = nib.Nifti1Image(np.asarray(expected.dataobj), original.affine)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(_VIEWS[view](reference).dataobj))


def test_prompts_that_cannot_be_used_are_named(server):
    for params, why in [
        ({}, "no prompt"),
        ({"background": [[1, 1, 1]]}, "no prompt"),
        ({"foreground": [[1000, 0, 0]]}, "outside the image"),
        ({"foreground": [[1, 2]]}, "3 voxel indices"),
        ({"roi": [0, 1, 2]}, "roi must have 6 numbers"),
    ]:
        answer = server.infer("hippocampus_prompt", "phantom_000", **params)
        assert answer.status_code == 422 and why in answer.json()["detail"], answer.text


def test_before_any_training_prompts_work_and_the_automatic_model_says_why_not(tmp_path):
    bundle = small_bundle(tmp_path, trained=False)
    with serve(tmp_path, bundle=bundle, cases=2) as server:
        assert list(server.info()["models"]) == ["hippocampus_prompt", "hippocampus_propagate"]
        refused = server.infer("hippocampus", "phantom_000")
        assert refused.status_code == 409 and "no trained model yet" in refused.json()["detail"]
        assert server.infer("hippocampus_prompt", "phantom_000", foreground=[[12, 16, 6]]).ok
        # weights of another network are refused, whatever part of them would fit
        (bundle / "models").mkdir()
        (bundle / "models" / "model.pt").write_bytes((tmp_path / "hippocampus_sam.pt").read_bytes())
        wrong = server.infer("hippocampus", "phantom_000")
        assert wrong.status_code == 500 and "not those of a trained bundle" in wrong.json()["detail"], wrong.text
