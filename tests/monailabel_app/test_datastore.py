"""What annotators store is checked and never lost: against files written by nibabel, PIL and ITK."""

import json
import os
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import itk
import nibabel as nib
import nrrd
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.datastore import CheckedDatastore
from lib.served_model import ServedModel

from ..integration.bundles import ROOT

AFFINE = np.array([[-1.0, 0, 0, 10], [0, 2, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]])
SHAPE = (8, 10, 6)


@pytest.fixture(scope="module")
def models():
    """hippocampus: 3-D with 1 anterior, 2 posterior; chest_xray: 2-D with 3 classes."""
    return {name: ServedModel(ROOT / "bundles" / name) for name in ("hippocampus", "chest_xray")}


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume.nii.gz"
    values = np.random.RandomState(0).rand(*SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


@pytest.fixture
def store(tmp_path, models, volume):
    store = CheckedDatastore(str(tmp_path / "studies"), models=models)
    store.add_image("case", str(volume), {})
    return store


def save(store, tmp_path, values, affine=AFFINE, image="case", tag="final", name="upload.nii.gz", **info):
    path = tmp_path / name
    nib.save(nib.Nifti1Image(values, affine), path)
    store.save_label(image, str(path), tag, info)
    return store.last_save()


def stored(store, image="case", tag="final"):
    return np.asarray(nib.load(store.get_label_uri(image, tag)).dataobj)


def refused(status, function, *args):
    with pytest.raises(HTTPException) as caught:
        function(*args)
    assert caught.value.status_code == status, caught.value.detail
    return caught.value.detail


def a_label(*classes):
    label = np.zeros(SHAPE, dtype=np.uint8)
    for index, value in enumerate(classes):
        label[2 * index + 1, 2:5, 2:4] = value
    return label


def everything(folder):
    """All files below a folder but locks, with their content."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


# --- names ----------------------------------------------------------------------------------------------------------

BAD_NAMES = ["../../x", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", " ", "a\0b", "a\nb", "x" * 300]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_plain_names_reach_no_file(store, volume, tmp_path, name):
    outside = everything(tmp_path)
    for function, args in [
        (store.add_image, (name, str(volume), {})),
        (store.save_label, (name, str(volume), "final", {})),
        (store.save_label, ("case", str(volume), name, {})),
        (store.get_image_uri, (name,)),
        (store.get_image_info, (name,)),
        (store.get_label_uri, (name, "final")),
        (store.get_label_uri, ("case", name)),
        (store.get_label_info, ("case", name)),
        (store.update_image_info, (name, {})),
        (store.remove_image, (name,)),
        (store.remove_label, (name, "final")),
        (store.remove_label, ("case", name)),
    ]:
        assert "plain name" in refused(400, function, *args)
    assert everything(tmp_path) == outside


def test_unknown_images_and_labels_are_named(store, volume):
    assert "nobody" in refused(404, store.get_image_uri, "nobody")
    assert "nobody" in refused(404, store.save_label, "nobody", str(volume), "final", {})
    assert "case" in refused(404, store.get_label_uri, "case", "final")
    refused(404, store.remove_image, "nobody")
    refused(404, store.remove_label, "case", "final")


def test_names_with_dots_spaces_and_letters_of_any_script_are_kept(store, volume):
    for name in ("1.2.840.113619", "Müller 2", "scan.nii"):
        assert store.add_image(name, str(volume), {}) == name
        assert os.path.samefile(os.path.dirname(store.get_image_uri(name)), store._datastore_path)
    assert set(store.list_images()) == {"case", "1.2.840.113619", "Müller 2", "scan.nii"}


# --- images ---------------------------------------------------------------------------------------------------------


def test_an_id_keeps_its_image(store, volume, tmp_path):
    before = everything(tmp_path / "studies")
    assert store.add_image("case", str(volume), {}) == "case"  # the same once more, as Slicer does
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE), other)
    assert "case" in refused(409, store.add_image, "case", str(other), {})
    assert everything(tmp_path / "studies") == before


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".png", ".jpg", ".tif"])
def test_whole_images_are_taken_and_truncated_ones_refused(store, volume, tmp_path, suffix):
    path = tmp_path / f"upload{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nib.load(volume), path)
    elif suffix == ".nrrd":
        itk.imwrite(itk.imread(str(volume)), str(path))
    else:
        Image.fromarray(np.random.RandomState(1).randint(0, 255, (64, 48), dtype=np.uint8)).save(path)
    store.add_image("whole", str(path), {})
    truncated(path)
    assert "cut" in refused(422, store.add_image, "cut", str(path), {})
    assert set(store.list_images()) == {"case", "whole"}


def test_junk_and_what_has_too_many_axes_is_refused(store, tmp_path):
    for suffix in (".nii.gz", ".nii", ".nrrd", ".png"):
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(os.urandom(5000))
        detail = refused(422, store.add_image, "junk", str(path), {})
        assert detail.startswith("junk: ") and "damaged" in detail
        assert str(tmp_path) not in detail, "a client learns nothing of the server's folders"
    path = tmp_path / "junk.txt"
    path.write_text("text")
    assert ".nii.gz" in refused(422, store.add_image, "junk", str(path), {})
    path = tmp_path / "series.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 3), np.float32), AFFINE), path)
    assert "4-D image with 3 volumes" in refused(422, store.add_image, "series", str(path), {})


def test_limit_of_size_holds_for_the_file_and_for_its_values(store, volume, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAGA_MAX_IMAGE_GB", "0.000001")  # 1 kB
    assert "MEDSAGA_MAX_IMAGE_GB" in refused(413, store.add_image, "large", str(volume), {})
    bomb = tmp_path / "bomb.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.uint8), AFFINE), bomb)
    assert bomb.stat().st_size < 1000
    assert "(40, 40, 40)" in refused(422, store.add_image, "bomb", str(bomb), {})


# --- labels ---------------------------------------------------------------------------------------------------------


def test_a_right_label_is_stored_as_it_came(store, tmp_path):
    answer = save(store, tmp_path, a_label(1, 2), client_id="ann")
    assert Path(store.get_label_uri("case", "final")).read_bytes() == (tmp_path / "upload.nii.gz").read_bytes()
    assert answer["models"] == ["hippocampus"]
    assert answer["voxels"] == {"anterior": 6, "posterior": 6}
    assert answer["annotator"] == "ann"
    assert answer["former_label"] is None
    assert store.datalist()[0]["label"] == store.get_label_uri("case", "final")


def nan():
    values = a_label(1).astype(np.float32)
    values[0, 0, 0] = np.nan
    return values


SHIFTED = AFFINE.copy()
SHIFTED[0, 3] += 0.6  # of a voxel of 1 mm
NEAR = AFFINE.copy()
NEAR[0, 3] += 0.4


@pytest.mark.parametrize(
    "values, affine, message",
    [
        (np.zeros((8, 10, 7), np.uint8), AFFINE, "(8, 10, 7), its image (8, 10, 6)"),
        (np.zeros((10, 8, 6), np.uint8), AFFINE, "must be equal"),
        (a_label(1), SHIFTED, "0.6 voxels"),
        (a_label(1), np.diag([-1, -1, 1, 1]) @ AFFINE, "same affine"),
        (a_label(1), AFFINE @ np.diag([1.2, 1, 1, 1]), "1.4 voxels"),  # 7 voxels of 0.2 mm more, one origin
        (a_label(1, 3), AFFINE, "[1, 3] are not all classes of one served model. hippocampus has 0 background, 1 ant"),
        (a_label(1).astype(np.float32) / 2, AFFINE, "0.5 are no class numbers"),
        (nan(), AFFINE, "NaN"),
        (-a_label(1).astype(np.int16), AFFINE, "-1"),
        (a_label(1).astype(np.int16) * 300, AFFINE, "300"),
        (np.zeros((*SHAPE, 2), np.uint8), AFFINE, "4-D image with 2 volumes"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE, "RGB"),
        (a_label(1).astype(np.complex64), AFFINE, "complex"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_refused(store, tmp_path, values, affine, message):
    save(store, tmp_path, a_label(1, 2))
    before = everything(tmp_path / "studies")
    detail = refused(422, save, store, tmp_path, values, affine)
    assert message in detail
    assert "final of case" in detail
    assert everything(tmp_path / "studies") == before


def test_truncated_labels_are_refused(store, tmp_path):
    for name in ("cut.nii.gz", "cut.nii"):
        path = tmp_path / name
        nib.save(nib.Nifti1Image(a_label(1, 2), AFFINE), path)
        truncated(path)
        detail = refused(422, store.save_label, "case", str(path), "final", {})
        assert detail.startswith("label final of case: ") and "truncated" in detail


def test_a_label_whose_axes_run_otherwise_is_turned_to_its_image(store, tmp_path):
    values = a_label(1, 2)
    values[0, 0, 0] = 1  # no symmetry
    codes = nib.orientations.aff2axcodes(AFFINE)
    original = nib.Nifti1Image(values, AFFINE)
    for axes in ("RAS", "LPS", "SAR", "PSL"):
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
        )
        nib.save(original.as_reoriented(turn), tmp_path / "turned.nii.gz")
        store.save_label("case", str(tmp_path / "turned.nii.gz"), "final", {})
        np.testing.assert_array_equal(stored(store), values, err_msg=f"{axes} instead of {codes}")
        np.testing.assert_allclose(nib.load(store.get_label_uri("case", "final")).affine, AFFINE)


def test_floats_near_whole_numbers_are_rounded_and_stored_whole(store, tmp_path):
    save(store, tmp_path, a_label(1, 2).astype(np.float32) + np.float32(1e-4))
    np.testing.assert_array_equal(stored(store), a_label(1, 2))
    assert stored(store).dtype == np.uint8


@pytest.fixture
def spleen(tmp_path, volume):
    """A store of a bundle with one class."""
    store = CheckedDatastore(str(tmp_path / "spleen"), models={"spleen": ServedModel(ROOT / "bundles" / "spleen")})
    store.add_image("case", str(volume), {})
    return store


@pytest.mark.parametrize("white", [255, 65535])
def test_white_is_the_one_class_with_a_warning(spleen, store, tmp_path, white):
    values = a_label(1).astype(np.uint16) * white
    answer = save(spleen, tmp_path, values)
    np.testing.assert_array_equal(stored(spleen), a_label(1))
    assert answer["voxels"] == {"spleen": 6} and str(white) in answer["warnings"][0]
    assert str(white) in refused(422, save, store, tmp_path, values), "of two classes it may be either"


def test_segmentations_of_slicer_with_one_layer_are_taken_and_with_several_refused(store, tmp_path):
    values = a_label(1, 2)
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    header = {"space": "left-posterior-superior", "space origin": lps[:3, 3], "encoding": "gzip"}
    path = tmp_path / "label.seg.nrrd"
    nrrd.write(str(path), values, {**header, "space directions": lps[:3, :3].T})
    store.save_label("case", str(path), "final", {})
    np.testing.assert_array_equal(stored(store), values)
    assert store.get_label_uri("case", "final").endswith("case.nii.gz")
    layers = np.stack([values == 1, values == 2]).astype(np.uint8)
    directions = np.vstack([[np.nan] * 3, lps[:3, :3].T])
    nrrd.write(str(path), layers, {**header, "space directions": directions, "kinds": ["list"] + ["domain"] * 3})
    assert "2 layers" in refused(422, store.save_label, "case", str(path), "final", {})


def test_near_affines_float_labels_and_empty_labels_are_taken(store, tmp_path):
    save(store, tmp_path, a_label(1), NEAR)
    save(store, tmp_path, a_label(2).astype(np.float64))
    np.testing.assert_array_equal(stored(store), a_label(2))
    answer = save(store, tmp_path, a_label())
    assert "background" in answer["warnings"][0]
    assert answer["voxels"] == {}


# --- segments by name -----------------------------------------------------------------------------------------------


def slicer_export(scene):
    """What Slicer's onSaveLabel sends for a scene of (name, class or None): label map and label_info.

    ExportSegmentsToLabelmapNode numbers the segments it is given from 1 in their order; ``idx`` is the place in the
    whole scene, and background and scribbles are left out of both.
    """
    values, info = np.zeros(SHAPE, np.uint8), []
    for idx, (name, row) in enumerate(scene):
        if name in ("background", "foreground_scribbles", "background_scribbles"):
            continue
        info.append({"name": name, "idx": idx + 1})
        if row is not None:
            values[row, 2:5, 2:4] = len(info)
    return values, info


@pytest.mark.parametrize(
    "scene",
    [
        [("anterior", 1), ("posterior", 3)],
        [("posterior", 3), ("anterior", 1)],
        [("background", None), ("posterior", 3), ("anterior", 1)],
        [("foreground_scribbles", None), ("anterior", 1), ("background", None), ("Posterior ", 3)],
        [("Segment_1", None), ("posterior", 3), ("anterior", 1)],
    ],
)
def test_slicers_segments_become_the_models_classes(store, tmp_path, scene):
    values, info = slicer_export(scene)
    answer = save(store, tmp_path, values, label_info=info)
    np.testing.assert_array_equal(stored(store), a_label(1, 2))
    np.testing.assert_allclose(nib.load(store.get_label_uri("case", "final")).affine, AFFINE)
    assert answer["voxels"] == {"anterior": 6, "posterior": 6}


def test_one_segment_alone_after_a_background(store, tmp_path):
    values, info = slicer_export([("background", None), ("posterior", 3)])
    assert info == [{"name": "posterior", "idx": 2}] and values.max() == 1
    save(store, tmp_path, values, label_info=info)
    assert stored(store).max() == 2


def test_values_beyond_the_segments_go_by_idx(store, tmp_path):
    save(store, tmp_path, a_label(5, 7), label_info=[{"name": "anterior", "idx": 7}, {"name": "posterior", "idx": 5}])
    np.testing.assert_array_equal(stored(store), a_label(2, 1))


def test_segments_that_no_model_knows_are_refused_by_name(store, tmp_path):
    values, info = slicer_export([("anterior", 1), ("Segment_1", 3)])
    detail = refused(422, lambda: save(store, tmp_path, values, label_info=info))
    assert "'Segment_1'" in detail
    assert "hippocampus has 0 background, 1 anterior, 2 posterior" in detail
    refused(422, lambda: save(store, tmp_path, a_label(1, 3), label_info=info))  # a value without a name


def test_ohif_sends_raw_bytes_with_the_first_axis_fastest(store, tmp_path):
    path = tmp_path / "label.bin"
    segments = [{"name": "posterior", "segmentIndex": 1, "id": "0+1"}, {"name": "anterior", "segmentIndex": 3}]
    path.write_bytes(a_label(3, 1).tobytes(order="F"))
    store.save_label("case", str(path), "final", {"label_info": segments})
    np.testing.assert_array_equal(stored(store), a_label(1, 2))
    assert store.get_label_uri("case", "final").endswith("case.nii.gz")
    path.write_bytes(b"\1" * 479)
    assert "479 bytes" in refused(422, store.save_label, "case", str(path), "final", {})


# --- 2-D ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(store, tmp_path):
    path = tmp_path / "xray.png"
    Image.fromarray(np.random.RandomState(2).randint(0, 255, (20, 30), dtype=np.uint8)).save(path)
    store.add_image("xray", str(path), {})
    label = np.zeros((20, 30), np.uint8)
    label[3:9, 4:20], label[12:15, 4:20] = 1, 3
    return label


def test_labels_of_pictures(store, tmp_path, picture):
    path = tmp_path / "label.png"
    Image.fromarray(picture).save(path)
    store.save_label("xray", str(path), "final", {})
    assert Path(store.get_label_uri("xray", "final")).read_bytes() == path.read_bytes()
    assert store.last_save()["models"] == ["chest_xray"]
    Image.fromarray(picture[:-1]).save(path)
    assert "(30, 19), its image (30, 20)" in refused(422, store.save_label, "xray", str(path), "final", {})


def test_colours_and_slicers_volumes_of_one_slice_become_plain_pictures(store, tmp_path, picture):
    path = tmp_path / "label.png"
    Image.fromarray(np.repeat(picture[..., None], 3, axis=2)).save(path)
    store.save_label("xray", str(path), "rgb", {})
    palette = Image.fromarray(picture).convert("P")
    palette.putdata(picture.ravel().tolist())
    palette.save(path)
    store.save_label("xray", str(path), "palette", {})
    Image.fromarray(np.where(picture == 1, 255, 0).astype(np.uint8)).convert("1").save(path)
    store.save_label("xray", str(path), "1-bit", {})
    with Image.open(store.get_label_uri("xray", "1-bit")) as written:
        np.testing.assert_array_equal(np.asarray(written), picture == 1)
    slicer = tmp_path / "label.nii.gz"  # as Slicer shows a picture: a volume of one slice
    nib.save(nib.Nifti1Image(picture.T[..., None], np.diag([-1, -1, 1, 1])), slicer)
    store.save_label("xray", str(slicer), "slicer", {})
    for tag in ("rgb", "palette", "slicer"):
        with Image.open(store.get_label_uri("xray", tag)) as written:
            assert written.mode == "L"
            np.testing.assert_array_equal(np.asarray(written), picture, err_msg=tag)


# --- nothing is lost ------------------------------------------------------------------------------------------------


def test_former_labels_are_kept_with_time_and_annotator(store, tmp_path):
    for row, name in enumerate(("ann", "bob/../x", "ann")):
        answer = save(store, tmp_path, a_label(*[1] * (row + 1)), client_id=name)
    assert answer["annotator"] == "ann"
    history = sorted((tmp_path / "studies" / ".medsaga" / "history" / "final").glob("*.nii.gz"))
    assert [p.name.split(".")[-3] for p in history] == ["ann", "bob____x"]
    assert str(history[-1].relative_to(tmp_path / "studies")) == answer["former_label"]
    for row, path in enumerate(history):
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), a_label(*[1] * (row + 1)))
        info = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert info["annotator"] == ("ann", "bob/../x")[row]


def test_another_format_replaces_the_former_file(store, tmp_path):
    save(store, tmp_path, a_label(1), name="upload.nii.gz")
    save(store, tmp_path, a_label(2), name="upload.nii")
    folder = tmp_path / "studies" / "labels" / "final"
    assert [p.name for p in folder.iterdir()] == ["case.nii"]
    assert stored(store).max() == 2


def test_proposals_are_not_kept(store, tmp_path):
    for value in (1, 2):
        answer = save(store, tmp_path, a_label(value), tag="original", model="hippocampus", version="model.pt@1")
    assert answer["former_label"] is None
    assert not (tmp_path / "studies" / ".medsaga" / "history").exists()
    assert stored(store, tag="original").max() == 2
    assert store.get_label_info("case", "original")["version"] == "model.pt@1"


def test_tags_stay_apart(store, volume, tmp_path):
    store.add_image("second", str(volume), {})
    save(store, tmp_path, a_label(1), tag="ann")
    save(store, tmp_path, a_label(2), tag="bob")
    save(store, tmp_path, a_label(1, 2))
    assert [stored(store, tag=tag).max() for tag in ("ann", "bob", "final")] == [1, 2, 2]
    assert store.status() == {"total": 2, "completed": 1, "label_tags": {"ann": 1, "bob": 1, "final": 1}}
    assert store.get_unlabeled_images() == ["second"]
    assert store.get_labeled_images("ann") == ["case"]
    store.remove_label("case", "ann")
    assert store.status()["label_tags"] == {"bob": 1, "final": 1}
    assert len(list((tmp_path / "studies" / ".medsaga" / "history" / "ann").glob("*.nii.gz"))) == 1


def test_archive_of_what_is_labelled(store, tmp_path):
    assert "no labelled image" in refused(404, store.get_dataset_archive, None)
    save(store, tmp_path, a_label(1))
    archive = store.get_dataset_archive(None)
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == ["image/case.nii.gz", "label/case.nii.gz", "metadata.json"]
    os.unlink(archive)


def test_removing_an_image_leaves_nothing_of_it(store, volume, tmp_path, models):
    store.add_image("case.1", str(volume), {})  # its history is its own
    for image in ("case", "case.1"):
        for _ in range(2):
            save(store, tmp_path, a_label(1), image=image)
    (store.private / "hippocampus").mkdir()
    for image in ("case", "case.1"):
        (store.private / "hippocampus" / f"{image}.json").write_text("a strategy's")
    store.remove_image("case")
    left = [name for name in everything(tmp_path / "studies") if "case" in name]
    assert sorted(name.split("/")[-1].split("case.1")[0] for name in left) == [""] * 5, left
    assert store.list_images() == ["case.1"]
    assert CheckedDatastore(str(tmp_path / "studies"), models=models).list_images() == ["case.1"]


def test_another_process_sees_the_same_and_both_can_write(store, volume, tmp_path, models):
    other = CheckedDatastore(str(tmp_path / "studies"), models=models)
    save(store, tmp_path, a_label(1))
    other.update_image_info("case", {"scores": 1})
    store.add_image("second", str(volume), {})
    other.refresh()
    for one in (store, other):
        assert one.get_image_info("case")["scores"] == 1 or one is store
        assert one.status()["completed"] == 1
    store.update_image_info("second", {"x": 2})
    assert store.get_image_info("case")["scores"] == 1


def test_many_threads_lose_nothing(store, volume, tmp_path):
    def work(number):
        image = f"image{number}"
        store.add_image(image, str(volume), {})
        (tmp_path / image).mkdir()
        save(store, tmp_path / image, a_label(1 + number % 2), image=image)
        store.update_image_info(image, {"number": number})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = json.loads((tmp_path / "studies" / "datastore_v2.json").read_text())["objects"]
    assert len(written) == 13
    for number in range(12):
        assert written[f"image{number}"]["image"]["info"]["number"] == number
        assert stored(store, f"image{number}").max() == 1 + number % 2


def test_files_put_into_the_folder_are_found_and_hidden_ones_not(store, volume, tmp_path, models):
    studies = tmp_path / "studies"
    shutil.copy(volume, studies / "copied.nii.gz")
    shutil.copy(volume, studies / ".partial.nii.gz")
    shutil.copy(volume, studies / "labels" / "final" / "copied.nii.gz")
    (studies / "labels" / ".cache").mkdir()
    shutil.copy(volume, studies / "labels" / ".cache" / "copied.nii.gz")
    for _ in range(2):
        again = CheckedDatastore(str(studies), models=models)
        assert set(again.list_images()) == {"case", "copied"}
        assert again.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}


def test_a_watched_folder_follows_copies_renames_and_other_processes(store, volume, tmp_path, models):
    studies = tmp_path / "studies"
    watched = CheckedDatastore(str(studies), models=models, auto_reload=True)

    def soon(condition):
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    try:
        shutil.copy(volume, studies / "copied.nii.gz")
        soon(lambda: "copied" in watched.list_images())
        shutil.copy(volume, studies / ".rsync")
        os.rename(studies / ".rsync", studies / "renamed.nii.gz")
        soon(lambda: "renamed" in watched.list_images())
        save(store, tmp_path, a_label(1))
        soon(lambda: watched.status()["completed"] == 1)
        assert watched.get_label_info("case", "final")["voxels"] == {"anterior": 6}
        os.unlink(studies / "copied.nii.gz")
        soon(lambda: "copied" not in watched.list_images())
    finally:
        watched._observer.stop()
        watched._observer.join()


def test_a_damaged_list_is_named_and_left(store, tmp_path, models):
    path = tmp_path / "studies" / "datastore_v2.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"datastore_v2.json is damaged. Move it away"):
        CheckedDatastore(str(tmp_path / "studies"), models=models)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("Mounting a small file system needs the right to mount (root).")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 4, 8, 12, 16, 20])
def test_a_full_disk_leaves_what_was_there(small_disk, volume, tmp_path, models, room):
    store = CheckedDatastore(str(small_disk / "studies"), models=models)
    store.add_image("case", str(volume), {})
    save(store, tmp_path, a_label(1, 2), client_id="ann")
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"x" * (free - room * 1024))
    noise = tmp_path / "noise.nii"
    nib.save(nib.Nifti1Image(np.random.RandomState(0).randint(0, 3, (16, 16, 80)).astype(np.uint8), AFFINE), noise)
    failed = []
    for what, args in [
        (store.save_label, ("case", str(tmp_path / "upload.nii.gz"), "final", {})),
        (store.save_label, ("case", str(tmp_path / "upload.nii.gz"), "other", {})),
        (store.add_image, ("second", str(noise), {})),
        (store.update_image_info, ("case", {"large": "x" * 20000})),
        (store.remove_label, ("case", "final")),
    ]:
        before, status = everything(small_disk / "studies"), store.status()
        try:
            what(*args)
        except HTTPException as err:
            failed.append(err.status_code)
            unchanged = everything(small_disk / "studies") == before and store.status() == status
            assert unchanged, what
    assert set(failed) == {507}
    assert len(failed) >= (5 if room == 0 else 2)
    filler.unlink()
    again = CheckedDatastore(str(small_disk / "studies"), models=models)
    assert again.status() == store.status()
    save(again, tmp_path, a_label(2))
