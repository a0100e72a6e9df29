"""What clients, disks and killed processes do to a running server: it says so, and loses nothing."""

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import nibabel as nib
import numpy as np
import psutil
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from ..waiting import until
from .server import fill, read_mask, serve, small_bundle

pytestmark = pytest.mark.integration

OUTSIDE = ["../../x", "/etc/passwd", "..", "a/../../x", "..\\x", ".medsaga"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of a trained model on four phantoms, of which the first two are labelled."""
    with serve(tmp_path_factory.mktemp("server")) as server:
        for name in ("phantom_000", "phantom_001"):
            assert server.save_label(name, right_label(server, name), client_id="ann").ok, server.tail()
        yield server


def right_label(server, name):
    return server.labels / f"{name}.nii.gz"


def written(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(folder):
    """All files of a server's folder but logs, uploads (removed later), and what strategies compute meanwhile."""
    own = (".log", "app/", "tmp/", "studies/.medsaga/hippocampus/")
    return {path: content for path, content in written(folder).items() if not any(part in path for part in own)}


def final_labels(server):
    return written(server.studies / "labels" / "final")


def changed_label(server, path, change):
    label = nib.load(right_label(server, "phantom_000"))
    nib.save(nib.Nifti1Image(change(np.asarray(label.dataobj)), label.affine), path)
    return path


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda label: label[:-1], "they must be equal"),
        (lambda label: np.where(label == 2, 3, label), "hippocampus has 0 background, 1 anterior, 2 posterior"),
        (lambda label: label * np.float32(0.5), "no class numbers"),
    ],
    ids=["shape", "class", "resampled"],
)
def test_labels_that_cannot_be_used(server, tmp_path, change, message):
    before = final_labels(server)
    answer = server.save_label("phantom_000", changed_label(server, tmp_path / "label.nii.gz", change))
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert final_labels(server) == before


def test_truncated_label(server, tmp_path):
    before = final_labels(server)
    path = tmp_path / "label.nii.gz"
    content = right_label(server, "phantom_000").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    answer = server.save_label("phantom_000", path)
    assert answer.status_code == 422
    assert "label final of phantom_000" in answer.json()["detail"]
    assert final_labels(server) == before


def test_a_label_that_replaces_another_says_where_that_is(server):
    content = right_label(server, "phantom_001").read_bytes()
    answer = server.save_label("phantom_001", right_label(server, "phantom_001"), client_id="bob").json()
    assert answer["annotator"] == "bob"
    assert (server.studies / answer["former_label"]).read_bytes() == content
    assert ".ann." in answer["former_label"]


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_studies_folder(server, name):
    folder = server.studies.parent
    before = stored(folder)
    image = server.studies / "phantom_000.nii.gz"
    answers = {
        "infer": server.infer("hippocampus", name),
        "infer by parameter": server.infer("hippocampus", "phantom_000", image=name),
        "prompt": server.infer("hippocampus_prompt", name, foreground=[[1, 1, 1]]),
        "other weights": server.infer("hippocampus", "phantom_000", model_filename=name),
        "tag of a proposal": server.infer("hippocampus", "phantom_000", save_label=True, label_tag=name),
        "session": server.infer("hippocampus", "", name),
        "suffix of the answer": server.infer("hippocampus", "phantom_000", result_extension=name),
        "get session": server.request("GET", f"/session/{quote(name + 'x', safe='')}"),
        "remove session": server.request("DELETE", f"/session/{quote(name + 'x', safe='')}"),
        "label": server.save_label(name, right_label(server, "phantom_000")),
        "tag": server.save_label("phantom_000", right_label(server, "phantom_000"), tag=name),
        "upload": server.add_image(name, image),
        "download": server.request("GET", "/datastore/image", params={"image": name}),
        "image info": server.request("GET", "/datastore/image/info", params={"image": name}),
        "download label": server.request("GET", "/datastore/label", params={"label": name, "tag": "final"}),
        "download label by tag": server.request(
            "GET", "/datastore/label", params={"label": "phantom_000", "tag": name}
        ),
        "remove": server.request("DELETE", "/datastore/image", params={"id": name}),
        "remove label": server.request("DELETE", "/datastore/label", params={"id": "phantom_000", "tag": name}),
    }
    refused = {what: (answer.status_code, answer.text[:200]) for what, answer in answers.items()}
    assert {what: code for what, (code, _) in refused.items() if code not in (400, 404, 405, 422)} == {}, refused
    assert stored(folder) == before


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, known",
    [
        ("/infer/nothing?image=phantom_000", "hippocampus_prompt"),
        ("/train/nothing", "hippocampus"),
        ("/activelearning/nothing", "random"),
        ("/batch/infer/nothing?images=unlabeled", "hippocampus"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(server, path, known):
    body = {"data": {"params": "{}"}} if path.startswith("/infer") else {"json": {}}
    answer = server.request("POST", path, **body)
    assert answer.status_code == 404, answer.text
    assert "'nothing'" in answer.json()["detail"]
    assert known in answer.json()["detail"]


# --- large files ----------------------------------------------------------------------------------------------------


def test_a_volume_of_200_mb_is_taken_and_junk_of_200_mb_refused(server, tmp_path):
    volume = tmp_path / "large.nii"
    nib.save(nib.Nifti1Image(np.zeros((512, 512, 400), np.int16), np.eye(4)), volume)
    assert volume.stat().st_size > 200e6
    try:
        assert server.add_image("large", volume).json() == {"image": "large"}
        assert (server.studies / "large.nii").stat().st_size == volume.stat().st_size
        volume.write_bytes(b"junk" * (50 * 10**6))
        answer = server.add_image("junk", volume)
        assert answer.status_code == 422
        assert "junk: it does not begin like a NIfTI file" in answer.json()["detail"]
    finally:
        assert server.request("DELETE", "/datastore/image", params={"id": "large"}).ok
    assert not (server.studies / "large.nii").exists()
    assert list((server.studies / ".medsaga" / "incoming").iterdir()) == []


# --- trainings ------------------------------------------------------------------------------------------------------


def start_training(server):
    """Start one that does not end by itself, and wait until it has made an epoch."""
    before = server.info()["train_stats"]["hippocampus"].get("current_time")
    assert server.request("POST", "/train/hippocampus", json={"max_epochs": 10000}).ok

    def learns() -> bool:
        assert server.training()["status"] in ("RUNNING", "SUBMITTED"), server.tail()
        stats = server.info()["train_stats"]["hippocampus"]
        return stats.get("epoch", 0) >= 1 and stats.get("current_time") != before

    until(learns, 180, why=server.tail)


def test_thirty_requests_at_once_while_a_training_runs(server, tmp_path):
    def requests():
        for number in range(30):
            # each by itself, in whatever order they come
            image, params = f"phantom_{number % 4:03d}", {"replace": True}
            if number % 3:
                yield "hippocampus", image, params
            else:
                click = [10 + number % 5, 15, 5]
                yield "hippocampus_prompt", image, {**params, "foreground": [click], "label": "anterior"}

    def ask(request):
        model, image, params = request
        answer = server.infer(model, image, **params)
        assert answer.status_code == 200, answer.text
        return answer.content

    def masks(contents):
        return [read_mask(content, tmp_path, f"{number}.nii.gz") for number, content in enumerate(contents)]

    expected = masks([ask(request) for request in requests()])
    start_training(server)
    try:
        with ThreadPoolExecutor(30) as pool:
            answers = masks(pool.map(ask, requests()))
        assert server.training()["status"] == "RUNNING"
    finally:
        assert server.request("DELETE", "/train/").ok
    assert server.wait_for_training()["status"] == "STOPPED"
    for number, (answer, right) in enumerate(zip(answers, expected)):
        np.testing.assert_array_equal(answer, right, err_msg=str(number))
    assert len({mask.tobytes() for mask in expected}) > 4, "the requests differ"


def test_a_killed_training_changes_nothing(server, tmp_path):
    model, labels = written(server.bundle / "models"), final_labels(server)
    right = read_mask(server.infer("hippocampus", "phantom_003").content, tmp_path)
    start_training(server)
    processes = server.training_processes()
    assert processes
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=20)
    assert server.wait_for_training(60)["status"] == "ERROR"
    assert written(server.bundle / "models") == model
    assert final_labels(server) == labels
    np.testing.assert_array_equal(read_mask(server.infer("hippocampus", "phantom_003").content, tmp_path), right)
    start_training(server)  # and the next one runs
    assert server.request("DELETE", "/train/").ok
    assert server.wait_for_training(60)["status"] == "STOPPED"


# --- full disks -----------------------------------------------------------------------------------------------------


def test_full_disks_are_said_and_lose_nothing(tmp_path, mount):
    studies = mount(tmp_path / "studies", "2m")
    bundle = small_bundle(tmp_path)
    weights = (bundle / "models" / "model.pt").read_bytes()
    models = mount(bundle / "models", f"{len(weights) + 2**18}")
    (models / "model.pt").write_bytes(weights)
    with serve(tmp_path, bundle, studies=studies) as server:
        assert server.save_label("phantom_000", right_label(server, "phantom_000")).ok
        right = read_mask(server.infer("hippocampus", "phantom_002").content, tmp_path)
        before = written(studies / "labels"), (studies / "datastore_v2.json").read_bytes()
        filler = fill(studies)
        for answer in (
            server.save_label("phantom_001", right_label(server, "phantom_001")),
            server.save_label("phantom_000", right_label(server, "phantom_000")),
            server.add_image("new", studies / "phantom_001.nii.gz"),
        ):
            assert answer.status_code == 507, answer.text
            assert "No space left" in answer.json()["detail"]
        assert (written(studies / "labels"), (studies / "datastore_v2.json").read_bytes()) == before
        answer = server.infer("hippocampus", "phantom_002")
        assert answer.ok, f"inference does not need space in the studies folder: {answer.text}"
        np.testing.assert_array_equal(read_mask(answer.content, tmp_path), right)
        filler.unlink()
        assert server.save_label("phantom_001", right_label(server, "phantom_001")).ok

        # a training that cannot write its model leaves the served one
        filler = fill(models)
        assert server.request("POST", "/train/hippocampus", json={"max_epochs": 1}).ok
        state = server.wait_for_training()
        assert state["status"] == "ERROR", server.tail()
        assert any("No space left" in line for line in state["details"]), state
        assert {path.read_bytes() for path in models.glob("*.pt")} == {weights}, "nothing half-written may be chosen"
        np.testing.assert_array_equal(read_mask(server.infer("hippocampus", "phantom_002").content, tmp_path), right)
        info = json.loads((studies / "datastore_v2.json").read_text())["objects"]
        assert {name for name, entry in info.items() if "final" in entry["labels"]} == {"phantom_000", "phantom_001"}
