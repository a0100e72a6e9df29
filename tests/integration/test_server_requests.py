"""Requests that a running server refuses: none runs code, reaches more than it should, or makes it fail.

What it takes can be read back, and what it removes is gone.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from medsaga.records import with_record

from ..waiting import until
from .server import serve, small_bundle

pytestmark = pytest.mark.integration

# what MONAI would evaluate, look up or load, and what other programs might
EXPRESSIONS = [
    "$__import__('pathlib').Path('ran').write_text('x') and 'cpu'",
    "$import pathlib",
    "@bundle_root",
    "%/etc/passwd.json",
    "__import__('pathlib').Path('ran').touch()",
    "{{7*7}}${7*7}`touch ran`$(touch ran);touch ran",
]
NESTED = '{"a":' * 300 + "1" + "}" * 300
LIMITS = {"MEDSAGA_MAX_PROMPTS": "5", "MEDSAGA_MAX_UPLOAD_GB": "0.02", "MEDSAGA_MAX_FILES": "20"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of a trained model on five phantoms, at a path, three of them labelled."""
    with serve(
        tmp_path_factory.mktemp("requests"), cases=4, environment=LIMITS, words=["--root_path", "/label"]
    ) as server:
        # names that MONAI would take for something else
        for name in ("$__import__('os').mkdir('ran')", "@device%x#y::z"):
            assert server.add_image(name, server.studies / "phantom_000.nii.gz").json() == {"image": name}
            shutil.copy(server.labels / "phantom_000.nii.gz", server.labels / f"{name}.nii.gz")
        for path in sorted(server.labels.iterdir()):
            if path.name != "phantom_003.nii.gz":
                assert server.save_label(path.name.removesuffix(".nii.gz"), path, client_id=EXPRESSIONS[0]).ok
        yield server


@pytest.fixture(autouse=True)
def unharmed(server):
    """Nothing ran, nothing failed, and the served weights are those of before, or a version."""
    served = server.bundle / "models" / "model.pt"
    before = served.read_bytes()
    yield
    assert served.is_file()
    assert served.read_bytes() in [before, *(path.read_bytes() for path in served.parent.glob("model_v*.pt"))]
    folder = server.log.parent
    assert not [path for path in folder.rglob("ran*") if path.is_dir() or path.suffix != ".gz"]
    assert not Path("ran").exists()
    assert server.process.poll() is None
    assert server.request("GET", "/info/").ok


def detail(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


# --- expressions ----------------------------------------------------------------------------------------------------


def test_a_device_is_no_expression(server):
    """The attack that ran code: its expression came into the config of a training."""
    for device in EXPRESSIONS:
        for path, body in (
            ("/train/hippocampus", {"max_epochs": 1, "device": device}),
            ("/train/", {"hippocampus": {"max_epochs": 1, "device": [device]}}),
            ("/batch/infer/hippocampus", {"device": device}),
        ):
            answer = server.request("POST", path, json=body)
            assert "there is no device" in detail(answer, 422), "and nothing is started"
        assert "there is no device" in detail(server.infer("hippocampus", "phantom_000", device=device), 422)
    assert server.training() == {}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_in_every_field_are_refused_or_mean_nothing(server, text):
    image = server.studies / "phantom_000.nii.gz"
    label = server.labels / "phantom_000.nii.gz"
    files = {"files": (text, image.read_bytes())}
    forms = ["label", "model_filename", "label_tag", "client_id", "logging", "result_extension", "result_dtype", "gpus"]
    forms += ["selected_label_name", "label_info", "image", "model", "bundle_path", text]
    answers = [server.infer("hippocampus", "phantom_000", **{name: text}) for name in forms]
    answers += [server.infer("hippocampus_prompt", "phantom_000", foreground=[[9, 9, 5]], label=text)]
    answers += [server.infer("hippocampus", "phantom_000", label_info=[{"name": text, text: text}])]
    answers += [server.infer("hippocampus", text), server.infer("hippocampus", "", text)]
    for name in ("client_id", "label_tag", "labels", "model", "seed", "image", text):
        answers.append(server.request("POST", "/activelearning/first", json={name: text}))
    for name in ("y", "y_pred", "client_id", text):
        answers.append(server.request("POST", "/scoring/dice", json={name: text}, params={"run_sync": True}))
    for name in ("label_tag", "gpus", "logging", text):
        answers.append(server.request("POST", "/batch/infer/hippocampus", json={name: [text]}))
    for name in ("pretrained", "max_epochs", "run_id", "tracking_uri", "model", "bundle_root", "train#dataset", text):
        answers.append(server.request("POST", "/train/hippocampus", json={name: text}))
    answers += [server.request("PUT", "/session/", files=files)]
    answers += [server.save_label("phantom_001", label, tag=text, **{text: text, "user": text})]
    answers += [server.request("PUT", "/datastore/image/info", params={"image": text}, data={"info": "{}"})]
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {200, 400, 404, 422}, [a.text for a in answers if a.status_code not in (200, 400, 404, 422)]
    assert codes.count(200) < len(codes) / 2
    assert server.training() == {}, "no training was started"


def test_a_training_takes_names_of_images_as_they_are(server):
    assert server.request("POST", "/train/hippocampus", json={"max_epochs": 1, "client_id": EXPRESSIONS[0]}).ok
    state = server.wait_for_training()
    assert state["status"] == "DONE", state["details"]
    version = json.loads((server.bundle / "models" / "versions.json").read_text())[-1]
    learnt = {*version["trained_on"], *version["held_back"]}
    assert {"$__import__('os').mkdir('ran').nii.gz", "@device%x#y::z.nii.gz"} <= learnt


# --- fields and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '"x"',
        "NaN",
        "[NaN]",
        "1e999",
        r'"\ud800"',
        "{",
        '{"model": ["a"]}',
        '{"a": NaN}',
        NESTED,
    ],
)
def test_fields_that_are_no_object_of_json(server, text):
    query, label = {"image": "phantom_003", "tag": "final"}, server.labels / "phantom_003.nii.gz"
    files = {"label": (label.name, label.read_bytes())}
    for method, path, options in [
        ("POST", "/infer/hippocampus", {"data": {"params": text}}),
        ("PUT", "/datastore/label", {"data": {"params": text}, "files": files}),
        ("PUT", "/datastore/image/info", {"data": {"info": text}}),
        ("PUT", "/datastore/image", {"data": {"params": text}, "files": {"file": ("x.nii.gz", b"x")}}),
    ]:
        answer = server.request(method, path, params=query, **options)
        assert any(word in detail(answer, 422) for word in ("params", "info")), answer.text
    for path in ("/train/hippocampus", "/batch/infer/hippocampus", "/activelearning/first", "/scoring/dice", "/train/"):
        answer = server.request("POST", path, data=text, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text


def test_prompts_are_limited(server):
    answer = server.infer("hippocampus_prompt", "phantom_000", foreground=[[1, 1, 1]] * 6)
    assert "MEDSAGA_MAX_PROMPTS" in detail(answer, 422)


@pytest.mark.parametrize("method, path, field", [("PUT", "/session/", "files"), ("POST", "/infer/hippocampus", "file")])
def test_an_image_is_limited_by_its_header(server, method, path, field):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 3000))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    bomb = ("x.nii", header.binaryblock + bytes(104))
    assert "MEDSAGA_MAX_IMAGE_GB" in detail(server.request(method, path, files={field: bomb}), 422)
    assert list((server.log.parent / "sessions").glob("*")) == []


def test_uploads_are_limited_before_they_are_unpacked(server):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(21):
            file.writestr(str(number), b"")
    packed = {"files": ("x.zip", archive.getvalue())}
    answer = server.request("PUT", "/session/", files=packed, params={"uncompress": True})
    assert "MEDSAGA_MAX_FILES" in detail(answer, 413)
    large = {"files": ("x.nii", bytes(20_100_000))}
    assert "MEDSAGA_MAX_UPLOAD_GB" in detail(server.request("PUT", "/session/", files=large), 413)
    assert list((server.log.parent / "sessions").glob("*")) == []


@pytest.mark.parametrize("name", ["..", "x\0y.nii.gz", "x." + "y" * 300, ".hidden"])
def test_names_of_files_that_are_none(server, name):
    for method, path, field in [
        ("PUT", "/session/", "files"),
        ("PUT", "/datastore/image?image=x", "file"),
        ("POST", "/infer/hippocampus", "file"),
        ("PUT", "/datastore/label?image=phantom_000", "label"),
        ("PUT", "/model/hippocampus", "file"),
    ]:
        answer = server.request(method, path, files={field: (name, b"x")})
        assert answer.status_code in (400, 422), (path, answer.status_code, answer.text)


# --- what is stored -------------------------------------------------------------------------------------------------


def test_a_note_that_cannot_be_read_back_keeps_no_server_from_starting(tmp_path):
    bundle, query = small_bundle(tmp_path), {"image": "phantom_000"}
    with serve(tmp_path, bundle, cases=1) as server:
        answer = server.request("PUT", "/datastore/image/info", params=query, data={"info": NESTED})
    with serve(tmp_path, bundle, cases=1) as server:
        assert server.request("GET", "/datastore/image/info", params=query).ok
    assert "info" in detail(answer, 422)


def test_a_damaged_entry_keeps_no_server_from_starting(tmp_path):
    bundle = small_bundle(tmp_path)
    with serve(tmp_path, bundle, cases=2) as server:
        listed = server.studies / "datastore_v2.json"
    content = json.loads(listed.read_text())
    content["objects"]["phantom_000"]["image"]["info"] = json.loads(NESTED)
    listed.write_text(json.dumps(content))
    with serve(tmp_path, bundle, cases=2) as server:
        assert server.info()["datastore"]["total"] == 2, "its image is there"
        log = server.log.read_text()
    (aside,) = (server.studies / ".medsaga" / "set_aside").iterdir()
    assert "phantom_000" in aside.read_text() and '{"a": ' * 299 in aside.read_text()
    assert "phantom_001" not in aside.read_text() and str(aside) in log, "it is kept, and the log names it"


@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [-Infinity]}', '{"a": 1e999}', r'{"a": "\ud800"}', NESTED])
def test_notes_of_any_kind_leave_the_list_of_images_as_it_was(server, what, text):
    query = {what: "phantom_000", "tag": "final"}
    answer = server.request("PUT", f"/datastore/{what}/info", params=query, data={"info": text})
    listed = server.request("GET", "/datastore/", params={"output": "all"})
    assert listed.status_code == 200, listed.text
    assert "info" in detail(answer, 422)


@pytest.mark.parametrize("info", [{"ts": "abc"}, {"ts": 1e300}, {"ts": None}, {"annotator": ["ann"]}, {"models": 1}])
def test_a_label_can_be_saved_whatever_was_noted_about_it(server, info):
    query = {"label": "phantom_000", "tag": "final"}
    answer = server.request("PUT", "/datastore/label/info", params=query, data={"info": json.dumps(info)})
    saved = server.save_label("phantom_000", server.labels / "phantom_000.nii.gz")
    assert saved.status_code == 200, saved.text
    assert next(iter(info)) in detail(answer, 422)


def test_the_page_says_what_is_served_and_needs_no_internet(server):
    answer = server.request("GET", "/")
    assert answer.status_code == 200 and "text/html" in answer.headers["content-type"]
    for shown in ("hippocampus", "anterior, posterior", f"<code>{server.url}/label</code>", "images,"):
        assert shown in answer.text, f"{shown}: {answer.text}"
    addresses = re.findall(r"https?://[^\s\"'<]+", answer.text)
    assert addresses and all(a.startswith((server.url, "http://HOST/")) for a in addresses), addresses
    assert "<script" not in answer.text


def _scores(server) -> set[str]:
    files = (server.studies / ".medsaga" / "hippocampus").glob("*case*.json")
    return {kind for file in files for kind in json.loads(file.read_text())["scores"]}


@pytest.mark.parametrize("name", ["case 1", "50%20 case", "case (é)"])
def test_a_removed_image_leaves_nothing(server, name):
    assert server.add_image(name, server.studies / "phantom_000.nii.gz").ok
    for _ in range(2):  # the first goes into the history
        assert server.save_label(name, server.labels / "phantom_000.nii.gz", tag="ann").ok
    assert server.request("POST", "/activelearning/entropy", json={"client_id": "ann"}).ok
    until(lambda: {"embedding", "entropy"} <= _scores(server))  # else they could be written once more
    assert len(list(server.studies.rglob("*case*"))) == 5, "image, label, scores, former label and what it was"
    assert server.request("DELETE", "/datastore/image", params={"id": name}).ok
    assert list(server.studies.rglob("*case*")) == []


# --- endpoints and browsers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, path, status",
    [("POST", "/reload", 404), ("DELETE", "/model/hippocampus", 404), ("GET", "/logs/", 403), ("GET", "/logs/gpu", 403),
     ("POST", "/infer/wsi/hippocampus", 404), ("POST", "/infer/wsi_v2/hippocampus", 404), ("GET", "/docs", 404),
     ("GET", "/static/ohif/index.html", 404), ("GET", "/proxy/dicom/wado/studies", 404),
     ("POST", "/proxy/dicom/tools/execute-script", 404), ("POST", "/infer/hippocampus", 422),
     ("GET", "/ohif/..%2f", 200), ("GET", "/ohif/assets", 200), ("GET", f"/ohif/{'a' * 5000}", 404),
     ("POST", "/infer/hippocampus?image=phantom_000&output=dicom_seg", 422),
     ("HEAD", "/datastore/image?image=phantom_000&check_sum=a:b", 422), ("GET", "/model/nothing", 404)],
)  # fmt: skip
def test_endpoints_that_are_closed_or_say_why_not(server, method, path, status):
    assert server.request(method, path).status_code == status


def test_pages_of_other_sites_and_other_hosts_are_refused(server):
    body = {"json": {"max_epochs": 1}}
    for origin in ("http://evil.example", "null", server.url.replace("127.0.0.1", "localhost"), f"{server.url}0"):
        for method, path in [("POST", "/train/hippocampus"), ("GET", "/info/"), ("DELETE", "/train/")]:
            answer = server.request(method, path, headers={"Origin": origin}, **body)
            assert "MEDSAGA_ORIGINS" in detail(answer, 403)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert server.request("OPTIONS", "/train/hippocampus", headers=preflight).status_code == 403
    assert "MEDSAGA_HOSTS" in detail(server.request("GET", "/info/", headers={"Host": "evil.example"}), 421)
    assert server.request("GET", "/info/", headers={"Origin": server.url}).ok


def test_ohif_lies_at_the_servers_path(server):
    page = server.request("GET", "/ohif/").text
    assert 'src="/label/ohif/app-config.js"' in page and '"/ohif/' not in page
    config = server.request("GET", "/ohif/app-config.js").text
    assert "routerBasename: '/label/ohif/'" in config and "'/label/proxy/dicom/qido'" in config
    bundle = next(part for part in page.split('"') if part.startswith("/label/ohif/app.bundle") and part.endswith("js"))
    assert '__webpack_require__.p = "/label/ohif/"' in server.request("GET", bundle.removeprefix("/label")).text


# --- models ---------------------------------------------------------------------------------------------------------


def upload(server, content: bytes):
    return server.request("PUT", "/model/hippocampus", files={"file": ("model.pt", content)})


def test_uploaded_models_are_loaded_strictly_and_served_only_if_not_worse(server):
    models = server.bundle / "models"
    served = (models / "model.pt").read_bytes()
    state = dict(torch.load(models / "model.pt", weights_only=True))  # without the record of its training

    def saved(content) -> bytes:
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()

    class Runs:
        def __reduce__(self):
            return exec, ("open('ran', 'w')",)

    part = {key: value for key, value in state.items() if "mask_tokens" not in key}
    broken = {key: value * float("nan") if value.is_floating_point() else value for key, value in state.items()}
    for content in (
        b"garbage",
        b"",
        b"a.",
        saved(Runs()),
        saved({"model": Runs()}),
        saved(part),
        saved(broken),
        served[:-99],
    ):
        assert "cannot be used as hippocampus" in detail(upload(server, content), 422)
    assert detail(server.request("PUT", "/model/nothing", files={"file": ("x", b"x")}), 404)
    assert (models / "model.pt").read_bytes() == served

    before = len(json.loads((models / "versions.json").read_text())) if (models / "versions.json").exists() else 0
    record = {"train": ["somebody else"], "labelled": True, "learnt_before": []}
    worse = {key: torch.zeros_like(value) if "hypernetworks" in key else value for key, value in state.items()}
    for content, compared in ((state, False), (with_record(worse, record), True), (with_record(state, record), True)):
        answer = upload(server, saved(content))
        assert answer.ok, answer.text
        made = answer.json()
        assert (made["score"] is not None) == compared, made
        assert made["served"] == (compared and made["score"] >= made["served_score"]), made
        kept = torch.load(models / made["version"], weights_only=True)
        assert all(torch.equal(kept[key], content[key]) for key in kept)
        if not made["served"]:
            assert (models / "model.pt").read_bytes() == served
    versions = json.loads((models / "versions.json").read_text())
    assert len(versions) >= before + 3 and all(v["note"].startswith("uploaded; ") for v in versions[-3:])
    assert server.infer("hippocampus", "phantom_000").ok
