"""The app's datastore against a real DICOM store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk  # noqa: N813
from fastapi import HTTPException
from pydicom.uid import generate_uid

from medsaga.dicom_seg import write_seg
from medsaga.reading import open_image

from .geometry import at_series, stored_segs, write_label
from .series import oblique_affine, write_volume
from .services import STORE, upload

pytestmark = pytest.mark.integration

VOLUME = {"label_info": [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]}
MOVED = np.array([[0, 0, 0, 1.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # by 1 mm to the right
LUNGS = {"label_info": [{"name": n, "idx": i} for i, n in enumerate(("right lung", "left lung", "heart"), 1)]}


@pytest.fixture(scope="module")
def open_store(dicom, store, models, tmp_path_factory):
    """Makes datastores: each with an empty cache, as another server would have."""
    from monailabel.datastore.dicom import DICOMwebClientX

    opened = []

    def make(**kwargs):
        datastore = dicom.DicomStore(
            client=DICOMwebClientX(url=store),
            search_filter=kwargs.pop("search_filter", dicom.search_filter()),
            cache_path=str(tmp_path_factory.mktemp("cache")),
            models=models,
            **kwargs,
        )
        opened.append(datastore)
        return datastore

    yield make
    for datastore in opened:
        datastore._observer.stop()


@pytest.fixture(scope="module")
def datastore(open_store):
    return open_store()


def test_series_of_all_modalities_are_listed(datastore, cases):
    assert set(datastore.list_images()) == {case.series.uid for case in cases.values()}


@pytest.mark.parametrize(
    "search_filter, expected",
    [
        ({"Modality": "CT"}, {"ct"}),
        ({"Modality": ["CT", "DX"]}, {"ct", "dx"}),
        ({"PatientID": "PHANTOM-cr"}, {"cr"}),
        ({}, None),
    ],
)
def test_the_search_filter_holds(open_store, cases, search_filter, expected):
    listed = set(open_store(search_filter=search_filter).list_images())
    assert listed == {cases[name].series.uid for name in expected or cases}


@pytest.mark.parametrize("name", ["mr", "ct", "mr2", "dx", "cr"])
def test_a_series_becomes_its_voxels_where_they_were(datastore, cases, name):
    series = cases[name].series
    found = at_series(datastore.get_image_uri(series.uid), series)
    if name == "cr":  # stored inverted; the offset is arbitrary
        found = found - found.min() + series.voxels.min()
    np.testing.assert_array_equal(found, series.voxels)


@pytest.mark.parametrize("name", ["mr", "ct"])
@pytest.mark.usefixtures("clean")
def test_a_label_comes_back_from_the_store_as_it_was(datastore, open_store, cases, name, tmp_path):
    case = cases[name]
    label = write_label(tmp_path / "label.nii.gz", case.label, case.series)
    assert datastore.save_label(case.series.uid, label, "final", dict(VOLUME)) == case.series.uid
    (seg,) = stored_segs(case.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["anterior", "posterior"]
    codes = [s.SegmentedPropertyTypeCodeSequence[0] for s in seg.SegmentSequence]
    assert [(c.CodeValue, c.CodingSchemeDesignator, c.CodeMeaning) for c in codes] == [
        ("5366008", "SCT", "Hippocampus")
    ] * 2
    colours = [tuple(s.RecommendedDisplayCIELabValue) for s in seg.SegmentSequence]
    assert len(set(colours)) == 2
    assert seg.PatientID == f"PHANTOM-{name}"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == case.series.uid
    # a server that has never seen this label reads it from the store alone
    for server in (datastore, open_store()):
        (pair,) = server.datalist()
        np.testing.assert_array_equal(at_series(pair["label"], case.series), case.label)
        np.testing.assert_array_equal(at_series(pair["image"], case.series), case.series.voxels)
        assert sitk.ReadImage(pair["label"]).GetSize() == sitk.ReadImage(pair["image"]).GetSize()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("value, name", [(1, "anterior"), (2, "posterior")])
def test_names_stay_right_when_a_class_is_absent(datastore, open_store, cases, value, name, tmp_path):
    case = cases["mr"]
    only = np.where(case.label == value, case.label, 0)
    datastore.save_label(case.series.uid, write_label(tmp_path / "l.nii.gz", only, case.series), "final", dict(VOLUME))
    (seg,) = stored_segs(case.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == [name]
    (code,) = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning.lower() == name
    (pair,) = open_store().datalist()
    np.testing.assert_array_equal(at_series(pair["label"], case.series), only)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    "label_info",
    [
        # 3D Slicer numbers its exported values 1, 2, …, and counts a background that it leaves out in idx
        [{"name": "posterior", "idx": 2}, {"name": "anterior", "idx": 3}],
        [{"name": "Posterior"}, {"name": "ANTERIOR"}],
    ],
)
def test_values_follow_the_clients_names(datastore, open_store, cases, label_info, tmp_path):
    case = cases["mr"]
    swapped = np.choose(case.label, [0, 2, 1])
    label = write_label(tmp_path / "l.nii.gz", swapped, case.series)
    datastore.save_label(case.series.uid, label, "final", {"label_info": label_info})
    for server in (datastore, open_store()):
        (pair,) = server.datalist()
        np.testing.assert_array_equal(at_series(pair["label"], case.series), case.label)


@pytest.mark.usefixtures("clean")
def test_a_second_label_is_a_second_segmentation_and_the_newer_one_counts(datastore, open_store, cases, tmp_path):
    case = cases["mr"]
    first = write_label(tmp_path / "a.nii.gz", case.label, case.series)
    second = write_label(tmp_path / "b.nii.gz", np.where(case.label == 1, 1, 0), case.series)
    datastore.save_label(case.series.uid, first, "final", dict(VOLUME))
    datastore.save_label(case.series.uid, second, "final", dict(VOLUME))
    assert len({s.SeriesInstanceUID for s in stored_segs(case.series.study)}) == 2
    for server in (datastore, open_store()):
        assert server.status()["completed"] == 1
        (pair,) = server.datalist()
        np.testing.assert_array_equal(at_series(pair["label"], case.series), np.where(case.label == 1, 1, 0))


@pytest.mark.usefixtures("clean")
def test_progress_counts_a_label_at_once(open_store, cases, tmp_path):
    datastore, case = open_store(), cases["mr2"]
    uid = case.series.uid
    assert datastore.status()["completed"] == 0
    assert datastore.get_label_by_image_id(uid, "final") == ""
    fails(404, datastore.get_label_uri, uid, "final")
    datastore.save_label(uid, write_label(tmp_path / "l.nii.gz", case.label, case.series), "final", dict(VOLUME))
    status = datastore.status()
    assert (status["completed"], status["total"]) == (1, len(cases))
    assert uid not in datastore.get_unlabeled_images()
    assert datastore.get_label_by_image_id(uid, "final") == uid


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", ["dx", "cr"])
def test_an_xrays_label_is_tied_to_its_pixels(datastore, open_store, cases, name, tmp_path):
    case = cases[name]
    label = write_label(tmp_path / "l.nii.gz", case.label, case.series)
    datastore.save_label(case.series.uid, label, "final", dict(LUNGS))
    (seg,) = stored_segs(case.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["right lung", "left lung", "heart"]
    assert "FrameOfReferenceUID" not in seg, "a projection has no place in the patient"
    frame = seg.PerFrameFunctionalGroupsSequence[0]
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == pydicom.dcmread(case.series.files[0]).SOPInstanceUID
    (pair,) = open_store().datalist()
    np.testing.assert_array_equal(at_series(pair["label"], case.series), case.label)


@pytest.mark.usefixtures("clean")
def test_segmentations_of_others_are_left_alone(datastore, open_store, cases, tmp_path):
    series = cases["mr"].series
    image = open_image(datastore.get_image_uri(series.uid))
    label = (image.load() > 500).astype(np.uint8)
    write_seg(label, image.grid, {1: "tumour"}, series.files, tmp_path / "s.dcm", "other")
    upload([tmp_path / "s.dcm"])
    other = open_store()
    assert other.status()["completed"] == 0
    assert other.datalist() == []


def _text_as_number(seg):
    seg.SegmentSequence[0].add(pydicom.DataElement("SegmentNumber", "LO", "{}"))


def _no_series(seg):
    seg.ReferencedSeriesSequence[0].add(pydicom.DataElement("SeriesInstanceUID", "LO", ""))


def _path_as_study(seg):
    seg.StudyInstanceUID = "../../1"


def _no_number(seg):
    del seg.SegmentSequence[0].SegmentNumber


def _no_reference(seg):
    seg.ReferencedSeriesSequence = []


def _text_as_date(seg):
    seg.add(pydicom.DataElement("ContentDate", "LO", "yesterday"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    "damage", [_text_as_number, _no_number, _no_series, _no_reference, _path_as_study, _text_as_date]
)
def test_one_damaged_segmentation_hides_no_other(datastore, open_store, cases, tmp_path, damage):
    case = cases["mr"]
    datastore.save_label(
        cases["ct"].series.uid,
        write_label(tmp_path / "l.nii.gz", cases["ct"].label, cases["ct"].series),
        "final",
        VOLUME,
    )
    image = open_image(datastore.get_image_uri(case.series.uid))
    write_seg(
        case.label.astype(np.uint8), image.grid, {1: "anterior", 2: "posterior"}, case.series.files, tmp_path / "s.dcm"
    )
    seg = pydicom.dcmread(tmp_path / "s.dcm")
    damage(seg)
    seg.save_as(tmp_path / "s.dcm")
    upload([tmp_path / "s.dcm"])
    other = open_store()
    assert cases["ct"].series.uid in other.get_labeled_images()
    assert cases["ct"].series.uid in [case["image"].split("/")[-1].removesuffix(".nii.gz") for case in other.datalist()]
    assert len(other.list_images()) == len(datastore.list_images()) and other.status()["completed"] >= 1


@pytest.mark.usefixtures("clean")
def test_a_proposals_segments_have_their_own_names_where_a_class_is_absent(datastore, cases, tmp_path):
    case = cases["mr"]
    folder = datastore.get_image_uri(case.series.uid).removesuffix(".nii.gz")
    label = write_label(tmp_path / "l.nii.gz", (case.label == 2) * 2, case.series)
    seg = pydicom.dcmread(datastore.proposal_as_seg(folder, label, VOLUME["label_info"]))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["posterior"]
    assert stored_segs(case.series.study) == []
    empty = write_label(tmp_path / "e.nii.gz", case.label * 0, case.series)
    assert "empty" in fails(422, datastore.proposal_as_seg, folder, empty, VOLUME["label_info"])


@pytest.mark.parametrize("metadata", [{}, {"00080018": {"vr": "UI"}}, {"00080018": {"vr": "UI", "Value": ["/tmp/x"]}}])
def test_a_frame_of_no_instance_becomes_no_file(dicom, store, models, tmp_path, metadata):
    """From a store that is asked for frames, and whose metadata name no instance."""
    from lib.stores.archive import Archive
    from monailabel.datastore.dicom import DICOMwebClientX

    class Store(DICOMwebClientX):
        def retrieve_series_metadata(self, *uids):
            return [metadata]

    archive = Archive(Store(url=store), dicom.search_filter(), models, fetch_by_frame=True)
    assert "not a DICOM UID" in fails(422, archive.download, "1.2", "1.2.3", tmp_path)
    assert list(tmp_path.iterdir()) == []


def fails(status: int, call, *args) -> str:
    with pytest.raises(HTTPException) as caught:
        call(*args)
    assert caught.value.status_code == status
    return str(caught.value.detail)


def test_what_is_no_series_is_refused(datastore, cases, tmp_path):
    for name in ("../../etc/passwd", "1.2/../3", "", "1" * 65, "/etc"):
        fails(400, datastore.get_image_uri, name)
        fails(400, datastore.get_label_uri, name, "final")
    assert "no series 1.2.3" in fails(404, datastore.get_image_uri, "1.2.3")
    label = write_label(tmp_path / "l.nii.gz", cases["mr"].label, cases["mr"].series)
    fails(400, datastore.save_label, cases["mr"].series.uid, label, "../../x", dict(VOLUME))
    fails(405, datastore.add_image, "1.2.3", label, {})
    fails(405, datastore.remove_image, cases["mr"].series.uid)


def test_labels_that_cannot_be_saved_say_why(datastore, cases, tmp_path):
    case = cases["mr"]

    def save(values, info):
        label = write_label(tmp_path / "l.nii.gz", values, case.series)
        return lambda: datastore.save_label(case.series.uid, label, "final", info)

    assert "empty" in fails(422, save(case.label * 0, dict(VOLUME)))
    assert "could be" in fails(422, save((case.label == 1) * 1, {}))
    assert "[2]" in fails(422, save(case.label, {"label_info": [{"name": "anterior", "idx": 1}]}))
    assert "tumour" in fails(422, save((case.label > 0) * 1, {"label_info": [{"name": "tumour", "idx": 1}]}))
    (tmp_path / "l.nii.gz").write_bytes(b"no image")
    words = fails(422, datastore.save_label, case.series.uid, str(tmp_path / "l.nii.gz"), "final", dict(VOLUME))
    assert case.series.uid in words and str(tmp_path) not in words
    moved = replace(case.series, affine=case.series.affine + MOVED)
    label = write_label(tmp_path / "l.nii.gz", case.label, moved)
    assert "voxels away" in fails(422, datastore.save_label, case.series.uid, label, "final", dict(VOLUME))
    assert stored_segs(case.series.study) == []


@pytest.fixture
def one_more(store, cases, tmp_path):
    """Makes a series of its own in the store, with a fault."""
    made = []

    def make(fault):
        voxels = np.random.RandomState(0).randint(0, 1000, (12, 10, 6))
        series = write_volume(tmp_path, voxels, oblique_affine((1, 1, 2), (0, 0, 0), False), "CT", "X")
        made.append(series)
        first = pydicom.dcmread(sorted(series.files)[0])
        if fault == "gap":
            middle = sorted(series.files, key=lambda f: float(pydicom.dcmread(f).ImagePositionPatient[2]))[2]
            series.files.remove(middle)
        else:
            first.SOPInstanceUID = first.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            if fault == "scout":
                first.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
                first.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            first.save_as(tmp_path / "more.dcm")
        upload([*series.files, *([tmp_path / "more.dcm"] if fault != "gap" else [])])
        return series

    yield make
    for series in made:
        query = {"Level": "Study", "Query": {"StudyInstanceUID": series.study}}
        for study in requests.post(f"{STORE}/tools/find", json=query, timeout=30).json():
            requests.delete(f"{STORE}/studies/{study}", timeout=30).raise_for_status()


@pytest.mark.parametrize("fault, words", [("gap", "missing"), ("twice", "one image at a position")])
def test_a_series_that_is_no_volume_says_why(open_store, one_more, tmp_path, fault, words):
    series, datastore = one_more(fault), open_store()
    detail = fails(422, datastore.get_image_uri, series.uid)
    assert words in detail and detail.startswith(f"Series {series.uid}: ")
    assert str(datastore._datastore_path) not in detail


def test_a_scout_in_a_series_is_left_out_of_image_and_segmentation(open_store, one_more, tmp_path, caplog):
    series, datastore = one_more("scout"), open_store()
    np.testing.assert_array_equal(at_series(datastore.get_image_uri(series.uid), series), series.voxels)
    assert "left out" in caplog.text
    label = np.zeros(series.voxels.shape, np.uint8)
    label[3:6, 2:4, 1:4] = 1
    file = write_label(tmp_path / "l.nii.gz", label, series)
    datastore.save_label(series.uid, file, "final", {"label_info": [{"name": "anterior", "idx": 1}]})
    (seg,) = stored_segs(series.study)
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) <= len(series.files)
    (pair,) = open_store().datalist()
    np.testing.assert_array_equal(at_series(pair["label"], series), label)


def test_an_interrupted_download_is_not_taken_for_a_series(open_store, cases, monkeypatch, dicom):
    datastore, uid = open_store(), cases["mr"].series.uid
    download = dicom.archive.dicom_web_download_series

    def breaks(study, series, folder, *args):
        download(study, series, folder, *args)
        raise requests.ConnectionError("cable pulled")

    monkeypatch.setattr(dicom.archive, "dicom_web_download_series", breaks)
    assert "cable" in fails(502, datastore.get_image_uri, uid)
    monkeypatch.undo()
    image = sitk.ReadImage(datastore.get_image_uri(uid))
    assert image.GetSize()[2] == cases["mr"].series.voxels.shape[2]


def test_a_store_that_is_away_is_named(dicom, store, models, tmp_path):
    from monailabel.datastore.dicom import DICOMwebClientX

    client = DICOMwebClientX(url="http://127.0.0.1:9/dicom-web")
    client.set_http_retry_params(retry=False)
    datastore = dicom.DicomStore(client, {"Modality": "CT"}, models, str(tmp_path))
    assert "127.0.0.1:9" in fails(502, datastore.list_images)
    datastore._observer.stop()
