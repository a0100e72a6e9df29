"""Labels on the grid of their image, as class numbers: against files written by nibabel, PIL and ITK."""

from functools import partial
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.served_model import ServedModel
from lib.stores import FolderStore

from ..integration.bundles import ROOT
from .phantoms import AFFINE, SHAPE, a_label, everything, refused, save, stored, truncated


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
        (np.zeros((8, 10, 7), np.uint8), AFFINE, "(8, 10, 7), but its image (8, 10, 6)"),
        (np.zeros((10, 8, 6), np.uint8), AFFINE, "must be equal"),
        (a_label(1), SHIFTED, "0.6 voxels"),
        (a_label(1), np.diag([-1, -1, 1, 1]) @ AFFINE, "same affine"),
        (a_label(1), AFFINE @ np.diag([1.2, 1, 1, 1]), "1.4 voxels"),  # 7 voxels of 0.2 mm more, one origin
        (a_label(1, 3), AFFINE, "[1, 3] are not all classes of one served model. hippocampus has 0 background, 1 ant"),
        (a_label(1).astype(np.float32) / 2, AFFINE, "0.5 are no class numbers"),
        (nan(), AFFINE, "NaN"),
        (-a_label(1).astype(np.int16), AFFINE, "-1"),
        (a_label(1).astype(np.int16) * 300, AFFINE, "300"),
        (np.zeros((*SHAPE, 2), np.uint8), AFFINE, "2 channels; expected one class number"),
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
    store = FolderStore(str(tmp_path / "spleen"), models={"spleen": ServedModel(ROOT / "bundles" / "spleen")})
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


# --- 2-D -------------------------------------------------------------------------------------------------------------


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
    assert "(30, 19), but its image (30, 20)" in refused(422, store.save_label, "xray", str(path), "final", {})


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


def test_slices_that_are_labelled_are_noted(store, tmp_path):
    save(store, tmp_path, a_label(1, 2), labelled_slices=[2, 3])
    assert store.get_label_info("case", "final")["labelled_slices"] == [2, 3]


@pytest.mark.parametrize("slices", [[], [-1], [6], [1, 1], [1.0], ["2"], 3, {"2": 1}])
def test_slices_that_there_are_not_are_refused(store, tmp_path, slices):
    detail = refused(422, partial(save, labelled_slices=slices), store, tmp_path, a_label(1))
    assert "labelled_slices" in detail and ("numbers from 0 to 5, each once" in detail or "should be a valid" in detail)
    assert store.get_labeled_images() == []
