"""The app on a DICOM store, by its REST interface."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from PIL import Image

from medsaga.dicom_seg import read_seg
from medsaga.reading import open_image

from ..bundles import run
from .geometry import at_series, stored_segs, write_label
from .series import RAS_TO_LPS
from .services import SERVER

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("server")]

VOLUME = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]
LUNGS = [{"name": name, "idx": index} for index, name in enumerate(("right lung", "left lung", "heart"), 1)]


def infer(model: str, image: str, path: Path, output: str = "image", **params) -> Path:
    """The mask that the server answers with."""
    answer = requests.post(
        f"{SERVER}/infer/{model}",
        params={"image": image, "output": output},
        data={"params": json.dumps({"device": "cpu", **params})},
        timeout=120,
    )
    assert answer.ok, answer.text
    path.write_bytes(answer.content)
    return path


def submit(image: str, label: str, names: list[dict]) -> requests.Response:
    with open(label, "rb") as file:
        return requests.put(
            f"{SERVER}/datastore/label",
            params={"image": image},
            data={"params": json.dumps({"label_info": names})},
            files={"label": (Path(label).name, file)},
            timeout=60,
        )


def training_data() -> dict[str, str]:
    """Label by image, as a training gets them."""
    answer = requests.get(f"{SERVER}/datastore/", params={"output": "train"}, timeout=60)
    assert answer.ok, answer.text
    return {Path(pair["image"]).name.removesuffix(".nii.gz"): pair["label"] for pair in answer.json()}


def by_bundle(name: str, bundle: Path, image: Path, folder: Path) -> Path:
    """The mask that the bundle's own command makes of an image."""
    settings = {"bundle_root": str(bundle), "model_path": str(bundle / "models" / "model.pt")}
    small = {"network_def#encoder": "vit_test", "image_size": 64}
    run("evaluating", name, "inference", **settings, **small, dataset_dir=str(image), output_dir=str(folder))
    (written,) = folder.glob("*_seg.*")
    return written


@pytest.mark.parametrize("name", ["mr", "ct"])
def test_a_series_mask_lies_where_the_bundle_puts_it(cases, bundles, tmp_path, name):
    case = cases[name]
    nib.save(nib.Nifti1Image(case.series.voxels.astype(np.int16), case.series.affine), tmp_path / "image.nii.gz")
    written = by_bundle("hippocampus", bundles["hippocampus"], tmp_path / "image.nii.gz", tmp_path / "bundle")
    expected = np.asarray(nib.load(written).dataobj)
    mask = at_series(infer("hippocampus", case.series.uid, tmp_path / "mask.nii.gz", replace=True), case.series)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(mask, expected)
    overlap = (mask > 0) & (case.label > 0)
    assert 2 * overlap.sum() / ((mask > 0).sum() + (case.label > 0).sum()) > 0.7, "and that is where it was drawn"


def test_an_xrays_mask_lies_where_the_bundle_puts_it(cases, bundles, tmp_path):
    case = cases["dx"]
    # the bundle reads what a PNG can hold as well as what a detector gives
    Image.fromarray(case.series.voxels.T.astype(np.uint16)).save(tmp_path / "image.png")
    written = by_bundle("chest_xray", bundles["chest_xray"], tmp_path / "image.png", tmp_path / "bundle")
    expected = np.asarray(Image.open(written)).T
    mask = at_series(infer("chest_xray", case.series.uid, tmp_path / "mask.nii.gz", replace=True), case.series)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("name", ["mr", "ct", "dx", "cr"])
def test_the_bundle_gives_the_same_mask_of_the_series_own_files(cases, bundles, tmp_path, name):
    series = cases[name].series
    bundle = "chest_xray" if len(series.voxels.shape) == 2 else "hippocampus"
    written = by_bundle(bundle, bundles[bundle], series.files[0].parent, tmp_path / "bundle")
    mask = at_series(infer(bundle, series.uid, tmp_path / "mask.nii.gz", replace=True), series)
    expected = np.asarray(Image.open(written)).T if written.suffix == ".png" else at_series(written, series)
    assert expected.any()
    np.testing.assert_array_equal(mask, expected)


def test_a_click_segments_what_is_under_it(cases, tmp_path):
    case = cases["mr"]
    stored = sitk_index(case, value=2)
    clicks = {"foreground": [stored], "background": [], "label": "posterior"}
    mask = at_series(infer("hippocampus_prompt", case.series.uid, tmp_path / "mask.nii.gz", **clicks), case.series)
    assert set(np.unique(mask)) == {0, 1}
    inside = case.label == 2
    assert (mask[inside] > 0).sum() > (mask[~inside] > 0).sum(), "most of it is the clicked structure"


def test_a_mask_can_be_had_as_seg(cases, tmp_path):
    case = cases["ct"]
    expected = infer("hippocampus", case.series.uid, tmp_path / "mask.nii.gz", replace=True)
    seg = infer(
        "hippocampus", case.series.uid, tmp_path / "seg.dcm", output="dicom_seg", replace=True, label_info=VOLUME
    )
    seg = pydicom.dcmread(seg)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["anterior", "posterior"]
    values = {entry["name"]: entry["idx"] for entry in VOLUME}
    image = open_image(expected)
    np.testing.assert_array_equal(read_seg(seg, image.grid, values), image.load())


def sitk_index(case, value: int) -> list[int]:
    """A voxel well inside a structure, as clients count it: in the volume that ITK makes of the series."""
    k = int((case.label == value).sum((0, 1)).argmax())
    inside = np.argwhere(case.label[:, :, k] == value)
    i, j = inside[np.abs(inside - inside.mean(0)).sum(1).argmin()]
    # slices sorted along columns × rows, which is where the series' own may run against
    lps = (RAS_TO_LPS @ case.series.affine)[:3, :3]
    along = np.dot(np.cross(lps[:, 0], lps[:, 1]), lps[:, 2]) > 0
    return [int(i), int(j), k if along else case.label.shape[2] - 1 - k]


@pytest.mark.usefixtures("clean")
def test_labels_are_stored_and_come_back_for_training(cases, tmp_path):
    volume, xray = cases["ct"], cases["cr"]
    assert submit(volume.series.uid, write_label(tmp_path / "v.nii.gz", volume.label, volume.series), VOLUME).ok
    assert submit(xray.series.uid, write_label(tmp_path / "x.nii.gz", xray.label, xray.series), LUNGS).ok
    # 3D Slicer's panel asks at once
    after = requests.get(f"{SERVER}/info/", timeout=60).json()["datastore"]
    assert (after["completed"], after["total"]) == (2, len(cases))
    (seg,) = stored_segs(xray.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["right lung", "left lung", "heart"]
    labels = training_data()
    np.testing.assert_array_equal(at_series(labels[volume.series.uid], volume.series), volume.label)
    np.testing.assert_array_equal(at_series(labels[xray.series.uid], xray.series), xray.label)


def test_what_cannot_be_done_is_said(cases, tmp_path):
    def status(answer: requests.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["detail"]

    code, words = status(requests.post(f"{SERVER}/infer/hippocampus", params={"image": "1.2.3"}, timeout=60))
    assert code == 404 and "1.2.3" in words
    code, _ = status(requests.post(f"{SERVER}/infer/hippocampus", params={"image": "../../etc/passwd"}, timeout=60))
    assert code in (400, 404)
    case = cases["mr"]
    code, words = status(
        submit(case.series.uid, write_label(tmp_path / "l.nii.gz", case.label * 0, case.series), VOLUME)
    )
    assert code == 422 and "empty" in words
    (tmp_path / "short.bin").write_bytes(b"\1" * 100)
    code, words = status(submit(case.series.uid, str(tmp_path / "short.bin"), VOLUME))
    assert code == 422 and "voxels" in words


def test_what_viewers_search_for_reaches_the_store(cases):
    """MONAI Label's own proxy drops the query of a request: any search finds everything."""

    def found(path, **query):
        answer = requests.get(f"{SERVER}/proxy/dicom/qido/{path}", params=query, timeout=60)
        assert answer.ok, answer.text
        return [entry["0020000D"]["Value"][0] for entry in answer.json()] if answer.content else []

    study = cases["mr"].series.study
    assert len(found("studies", limit=101, offset=0, fuzzymatching="false", includefield="00081030,00080060")) == 6
    assert len(found("studies", limit=2)) == 2
    assert found("studies", PatientID="PHANTOM-mr") == found("studies", StudyInstanceUID=study) == [study]
    assert found("studies", PatientName="no such*&?#/../x") == []
    assert found(f"studies/{study}/series", Modality="MR") == [study]
    assert found(f"studies/{study}/series", Modality="CT") == []
    metadata = f"{SERVER}/proxy/dicom/qido/studies/{study}/series/{cases['mr'].series.uid}/metadata"
    assert requests.get(metadata, params={"limit": 1}, timeout=60).json() == requests.get(metadata, timeout=60).json()
