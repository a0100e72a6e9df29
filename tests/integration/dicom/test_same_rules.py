"""The same label, submitted to a folder and to a DICOM store in each client's dialect, becomes the same."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException

from medsaga.dicom_seg import write_seg
from medsaga.reading import open_image

from ..server import serve, small_bundle
from .geometry import at_series, stored_segs, write_label
from .services import upload

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("clean")]


@pytest.fixture(scope="module")
def stores(dicom, store, models, cases, tmp_path_factory):
    """A folder and a DICOM store, both with the same images under the same ids."""
    from monailabel.datastore.dicom import DICOMwebClientX

    cache, studies = (str(tmp_path_factory.mktemp(name)) for name in ("cache", "studies"))
    remote = dicom.DicomStore(DICOMwebClientX(url=store), dicom.search_filter(), models, cache)
    folder = importlib.import_module("lib.stores").FolderStore(studies, models)
    for name in ("mr", "dx"):
        uid = cases[name].series.uid
        folder.add_image(uid, remote.get_image_uri(uid), {})
    yield {"folder": folder, "dicom": remote}
    remote._observer.stop()


def outcome(store, image, file, tag, info):
    """What a store makes of a submission: values, report and notes, or the refusal."""
    try:
        store.save_label(image, str(file), tag, dict(info))
    except HTTPException as err:
        return err.status_code, err.detail
    report = {key: value for key, value in store.last_save().items() if key != "former_label"}
    notes = store.get_label_info(image, tag)
    kept = {key: notes[key] for key in ("models", "voxels", "label_info", "annotator", "name")}
    label = open_image(store.get_label_uri(image, tag), label=True)
    assert not label.grid.placed or label.grid.voxels_apart(store._grid(image)) < 0.01
    return np.asarray(label.load()).astype(int).tolist(), report, kept


def segments(*names, **numbers):
    return [{"name": name, **{key: values[n] for key, values in numbers.items()}} for n, name in enumerate(names)]


# dialect: value of the file by class number, and what is sent beside it
DIALECTS = {
    "plain": ({1: 1, 2: 2}, {"model": "hippocampus"}),
    "Slicer": ({1: 1, 2: 2}, {"label_info": segments("anterior", "posterior", idx=(1, 2)), "client_id": "ann"}),
    "Slicer, the other order": ({1: 2, 2: 1}, {"label_info": segments("posterior", "anterior", idx=(1, 2))}),
    "Slicer, after a background": ({1: 2, 2: 1}, {"label_info": segments("Posterior", "ANTERIOR ", idx=(2, 3))}),
    "Slicer, an unused segment": (
        {1: 1, 2: 3},
        {"label_info": segments("anterior", "S_1", "posterior", idx=(1, 2, 3))},
    ),
    "OHIF": ({1: 2, 2: 1}, {"label_info": segments("posterior", "anterior", segmentIndex=(1, 2))}),
    "OHIF, gaps": ({1: 5, 2: 3}, {"label_info": segments("posterior", "anterior", segmentIndex=(3, 5))}),
    "idx that falls": ({1: 1, 2: 2}, {"label_info": segments("posterior", "anterior", idx=(2, 1))}),
    "idx beyond the list": ({1: 7, 2: 9}, {"label_info": segments("anterior", "posterior", idx=(7, 9))}),
    "idx as text": ({1: 1, 2: 2}, {"label_info": segments("posterior", "anterior", idx=("2", "1"))}),
    "names alone": ({1: 1, 2: 2}, {"label_info": segments("anterior", "posterior")}),
    "a model's answer": ({1: 1, 2: 2}, {"params": {"label_names": {"anterior": 1, "posterior": 2}}}),
}


@pytest.mark.parametrize("tag", ["final", "ann"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_label_becomes_the_same_in_both(stores, cases, tmp_path, dialect, tag):
    case = cases["mr"]
    numbers, info = DIALECTS[dialect]
    values = np.zeros_like(case.label)
    for number, value in numbers.items():
        values[case.label == number] = value
    file = write_label(tmp_path / "label.nii.gz", values, case.series)
    folder, dicom = (outcome(stores[name], case.series.uid, file, tag, info) for name in ("folder", "dicom"))
    assert folder == dicom
    stored, report, notes = folder
    assert report["models"] == notes["models"] == ["hippocampus"]
    assert report["voxels"] == {n: int((case.label == v).sum()) for n, v in (("anterior", 1), ("posterior", 2))}
    assert np.bincount(np.ravel(stored)).tolist() == np.bincount(case.label.ravel()).tolist()
    assert len(stored_segs(case.series.study)) == (tag == "final")


def test_an_xray_in_ohifs_bytes_becomes_the_same_in_both(stores, cases, tmp_path):
    case = cases["dx"]
    (tmp_path / "label.bin").write_bytes(case.label.tobytes(order="F"))
    info = {"label_info": segments("right lung", "left lung", "heart", segmentIndex=(1, 2, 3))}
    results = [outcome(store, case.series.uid, tmp_path / "label.bin", "final", info) for store in stores.values()]
    assert results[0] == results[1] and results[0][1]["models"] == ["chest_xray"]


MOVED = np.zeros((4, 4))
MOVED[0, 3] = 1.0
REFUSED = {
    "shape": (lambda case: (case.label[:-1], case.series), {"model": "hippocampus"}, "must be equal"),
    "place": (
        lambda case: (case.label, replace(case.series, affine=case.series.affine + MOVED)),
        {"model": "hippocampus"},
        "voxels away",
    ),
    "number": (lambda case: (case.label * 4, case.series), {}, "not all classes of one served model"),
    "which model": (lambda case: ((case.label == 1) * 1, case.series), {}, "could be anterior of hippocampus; spleen"),
    "name": (
        lambda case: (case.label, case.series),
        {"label_info": segments("anterior", "tumour", idx=(1, 2))},
        "'anterior', 'tumour' are not all classes",
    ),
    "no name": (lambda case: (case.label, case.series), {"label_info": segments("anterior")}, "[2] have no name"),
    "twice": (lambda case: (case.label, case.series), {"label_info": segments("a", "b", idx=(3, 3))}, "the same value"),
    "form": (lambda case: (case.label, case.series), {"label_info": ["anterior"]}, "label_info.0"),
    "notes": (lambda case: (case.label, case.series), {"a": float("nan")}, "a is nan"),
    "no object": (lambda case: (case.label, case.series), [1], "object"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_has_the_same_words_in_both(stores, cases, tmp_path, fault):
    case = cases["mr"]
    change, info, message = REFUSED[fault]
    file = write_label(tmp_path / "label.nii.gz", *change(case))
    results = []
    for store in stores.values():
        with pytest.raises(HTTPException) as caught:
            store.save_label(case.series.uid, file, "final", info)
        results.append((caught.value.status_code, caught.value.detail))
    assert results[0] == results[1]
    assert results[0][0] == 422 and message in results[0][1]
    assert stored_segs(case.series.study) == []


@pytest.mark.parametrize("tag", ["../../x", "", ".hidden", "a/b", "x" * 300])
def test_tags_have_the_same_rules_in_both(stores, cases, tmp_path, tag):
    case = cases["mr"]
    file = write_label(tmp_path / "label.nii.gz", case.label, case.series)
    info = {"model": "hippocampus"}
    assert outcome(stores["folder"], case.series.uid, file, tag, info) == outcome(
        stores["dicom"], case.series.uid, file, tag, info
    )
    assert outcome(stores["dicom"], case.series.uid, file, tag, info)[0] == 400
    assert len(outcome(stores["dicom"], case.series.uid, file, "Dr. Müller", info)) == 3


def test_a_segmentation_from_elsewhere_says_which_models_it_fits(dicom, store, models, cases, tmp_path):
    """One bundle does not train on labels of another's classes."""
    from monailabel.datastore.dicom import DICOMwebClientX

    series = cases["mr"].series
    remote = dicom.DicomStore(DICOMwebClientX(url=store), {"Modality": "MR"}, models, str(tmp_path / "cache"))
    image = open_image(remote.get_image_uri(series.uid))
    for names, expected in [({1: "Spleen", 2: "tumour"}, ["spleen"]), ({1: "anterior"}, ["hippocampus"])]:
        values = np.zeros(image.grid.shape, np.uint8)
        values[3:6, 3:6, 3:6] = 1
        values[8:9, 3:6, 3:6] = max(names)
        write_seg(values, image.grid, names, series.files, tmp_path / "seg.dcm", "other")
        upload([tmp_path / "seg.dcm"])
        remote.archive.forget_listings()
        assert remote.get_label_info(series.uid, "final")["models"] == expected
        for name in models:
            task = importlib.import_module("lib.trainers").RetrainTask(models[name])
            used = [case["label"] for case in task._fetch_datalist({}, remote)]
            assert used == ([remote.get_label_uri(series.uid, "final")] if name in expected else [])
        assert remote.get_label_info(series.uid, "final")["models"] == expected, "also when it has been read"
    remote._observer.stop()


# --- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(store, cases, tmp_path_factory):
    """A server of a folder and one of the DICOM store, both of two volumes and of bundles that share no class."""
    work = tmp_path_factory.mktemp("servers")
    bundles = [small_bundle(work, name, trained=False) for name in ("hippocampus", "spleen")]
    conf = {"models": ",".join(str(bundle) for bundle in bundles)}
    remote = {
        "environment": {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(work / "cache")},
        "words": ["--studies", store],  # the last one counts
    }
    with (
        serve(work / "folder", bundles[0], cases=0, conf=conf) as folder,
        serve(work / "dicom", bundles[0], cases=0, conf=conf, **remote) as dicom,
    ):
        for series in (cases["mr"].series, cases["mr2"].series):
            image = work / "image.nii.gz"
            nib.save(nib.Nifti1Image(series.voxels.astype(np.int16), series.affine), image)
            assert folder.add_image(series.uid, image).ok
        yield {"folder": folder, "dicom": dicom}


def answered(server, case, file, tag, info):
    """What a server makes of a submission: the values that it gives back and its answer, or the refusal."""
    answer = server.save_label(case.series.uid, file, tag, **info)
    if not answer.ok:
        return answer.status_code, answer.json()["detail"]
    label = server.request("GET", "/datastore/label", params={"label": case.series.uid, "tag": tag})
    assert label.ok, label.text
    stored = file.with_name("stored.nii.gz")
    stored.write_bytes(label.content)
    report = {key: answer.json().get(key) for key in ("tag", "annotator", "models", "voxels", "warnings")}
    return answer.status_code, at_series(stored, case.series).tolist(), report


# submission: tag, value of the file by class number, what is sent beside it, whether the file is moved; what is said
SUBMITTED = {
    "idx that falls": ("final", (1, 2), segments("posterior", "anterior", idx=(2, 1)), False, None),
    "segmentIndex": ("final", (5, 3), segments("posterior", "anterior", segmentIndex=(3, 5)), False, None),
    "spelling": ("final", (1, 2), segments("_Anterior", "POSTERIOR", idx=(1, 2)), False, None),
    "moved": ("final", (1, 2), segments("anterior", "posterior"), True, "voxels away"),
    "no name": ("final", (1, 2), segments("anterior"), False, "[2] have no name"),
    "no class": ("final", (1, 2), segments("anterior", "tumour"), False, "not all classes of one served model"),
    "tag": ("Dr. Müller", (1, 2), segments("anterior", "posterior"), False, None),
}


@pytest.mark.parametrize("what", SUBMITTED)
def test_both_servers_answer_the_same(servers, cases, tmp_path, what):
    case = cases["mr"]
    tag, numbers, names, moved, refusal = SUBMITTED[what]
    values = np.array([0, *numbers], np.uint8)[case.label]
    series = replace(case.series, affine=case.series.affine + MOVED) if moved else case.series
    write_label(tmp_path / "label.nii.gz", values, series)
    folder, dicom = (
        answered(server, case, tmp_path / "label.nii.gz", tag, {"label_info": names}) for server in servers.values()
    )
    assert folder == dicom
    if refusal:
        assert folder[0] == 422 and refusal in folder[1]
    else:
        assert folder[0] == 200 and folder[2]["models"] == ["hippocampus"]
        np.testing.assert_array_equal(folder[1], case.label)


def test_a_bundle_does_not_train_on_the_labels_of_another(servers, cases, tmp_path):
    server, of = servers["dicom"], {"hippocampus": ("mr", "anterior"), "spleen": ("mr2", "spleen")}
    for image, name in of.values():
        label = write_label(tmp_path / "label.nii.gz", (cases[image].label == 1) * 1, cases[image].series)
        assert server.save_label(cases[image].series.uid, label, label_info=segments(name)).ok
    for bundle, (image, _) in of.items():
        assert server.request("POST", f"/train/{bundle}", json={"max_epochs": 1}).ok
        state = server.wait_for_training()
        assert state["status"] == "DONE", state["details"]
        (version,) = json.loads((server.bundle.parent / bundle / "models" / "versions.json").read_text())
        assert version["trained_on"] + version["held_back"] == [f"{cases[image].series.uid}.nii.gz"], bundle
