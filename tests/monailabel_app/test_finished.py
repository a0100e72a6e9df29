"""Finished objects: what is known of them, and that prompts for others and automatic masks leave them as they are."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from monai.transforms import Spacing
from PIL import Image

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.infers import AutomaticTask, FinishedObjects, PromptedTask
from lib.infers.finished import Region
from lib.infers.prompts import Placing
from lib.served_model import PLANES, ServedModel

from ..integration.server import small_bundle
from .test_infers import GRIDS, SHAPE, noise, write

CLASSES = {"anterior": 1, "posterior": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ServedModel(small_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def image(tmp_path):
    return write(tmp_path / "image.nii.gz", noise(), GRIDS["axial"][0])


def blob(seed, shape=SHAPE, share=0.3):
    """Some voxels of a random box."""
    chance = np.random.RandomState(seed)
    low = [chance.randint(0, n // 2) for n in shape]
    mask = np.zeros(shape, dtype=bool)
    window = tuple(slice(a, chance.randint(a + 2, n + 1)) for a, n in zip(low, shape))
    mask[window] = chance.rand(*mask[window].shape) < share
    mask[tuple(low)] = True
    return mask


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def outside(*masks, seed=0, count=3):
    """Voxels on one slice that none of the masks has."""
    free = np.argwhere(~np.any(masks, axis=0))
    chance = np.random.RandomState(seed)
    first = free[chance.randint(len(free))]
    same = free[free[:, 2] == first[2]]
    return same[chance.permutation(len(same))[:count]].tolist()


# --- what is known --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, (30, 20)])
def test_a_region_is_its_mask(shape):
    for seed in range(20):
        mask = blob(seed, shape)
        region = Region(mask)
        solid = mask.reshape((*shape, 1)[:3])
        np.testing.assert_array_equal(region.mask, solid)
        values = np.random.RandomState(seed).randint(0, 3, shape).astype(np.uint8)
        expected = np.where(mask, 7, values)
        assert region.set_in(values, 7) == True  # noqa: E712
        np.testing.assert_array_equal(values, expected)
        for voxel in np.argwhere(np.ones(solid.shape))[:: 1 + solid.size // 200]:
            assert region.covers([slice(int(v), int(v) + 1) for v in voxel]) == solid[tuple(voxel)]


def test_what_was_prompted_takes_the_place_of_what_was_submitted(tmp_path, image):
    finished = FinishedObjects(CLASSES)
    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 3:8, 1:7], label[8:12, 3:8, 1:7] = 1, 2
    final = write(tmp_path / "label.nii.gz", label, GRIDS["axial"][0])
    assert {name: region.mask.sum() for name, region in finished.of(image, final, SHAPE).items()} == {
        "anterior": (label == 1).sum(),
        "posterior": (label == 2).sum(),
    }
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 3:5, 2] = True
    finished.keep(image, final, "anterior", mask, (2, [2]))
    expected = label == 1
    expected[..., 2] = mask[..., 2]
    np.testing.assert_array_equal(finished.of(image, final, SHAPE)["anterior"].mask, expected)
    finished.keep(image, final, "anterior", mask)
    np.testing.assert_array_equal(finished.of(image, final, SHAPE)["anterior"].mask, mask)
    np.testing.assert_array_equal(finished.of(image, final, SHAPE)["posterior"].mask, label == 2)
    finished.keep(image, final, "anterior", label == 2, replace=True)
    assert list(finished.of(image, final, SHAPE)) == ["anterior"], "it has taken all of the other"
    finished.forget(image)
    assert set(finished.of(image, final, SHAPE)) == {"anterior", "posterior"}
    finished.keep(image, final, "anterior", mask)
    nib.save(nib.Nifti1Image(2 * (label == 1).astype(np.uint8), np.eye(4)), final)
    os.utime(final, (1, 1))
    assert list(finished.of(image, final, SHAPE)) == ["posterior"], "a label that came by other means counts too"
    assert finished.of(image, None, SHAPE) == {}


def test_labels_that_cannot_be_used_protect_nothing(tmp_path, image, caplog):
    finished = FinishedObjects(CLASSES)
    for values in (np.full(SHAPE, 9, np.uint8), np.ones((3, 3, 3), np.uint8)):
        final = write(tmp_path / "label.nii.gz", values, np.eye(4))
        assert finished.of(image, final, SHAPE) == {}
        assert "its objects are not protected" in caplog.text
        caplog.clear()
    assert finished.of(image, str(tmp_path / "removed.nii.gz"), SHAPE) == {}


def test_names_are_equal_as_clients_write_them(image):
    finished = FinishedObjects({"right lung": 1})
    assert finished.name("Right_Lung") == "right lung" and finished.name("tumour") == "tumour"
    assert finished.name("Background") is finished.name("") is finished.name(None) is None


def test_memory_is_bounded_and_the_latest_stay(tmp_path):
    images = [write(tmp_path / f"{n}.nii.gz", noise(), np.eye(4)) for n in range(6)]
    mask = np.ones(SHAPE, bool)
    finished = FinishedObjects(CLASSES, max_bytes=3 * (Region(mask).nbytes + 1000))
    for image in images:
        finished.keep(image, None, "anterior", mask)
        finished.of(images[0], None, SHAPE)
    assert [bool(finished.of(image, None, SHAPE)) for image in images] == [True, False, False, False, True, True]


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("propagate", [False, True])
def test_an_answer_has_no_voxel_of_others_and_its_clicks_all_the_same(model, tmp_path, name, propagate):
    image = write(tmp_path / "image.nii.gz", noise(), GRIDS[name][0])
    overlaps = 0
    for seed in range(4):
        finished = FinishedObjects(model.labels)
        task = PromptedTask(model, propagate, finished)
        other = blob(seed, share=0.7)
        finished.keep(image, None, "anterior", other)
        clicks = outside(other, seed=seed)
        request = {"image": image, "device": "cpu", "label": "posterior", "foreground": clicks}
        free, free_params = task({**request, "replace": True})
        finished.forget(image)
        finished.keep(image, None, "anterior", other)
        written, params = task(dict(request))
        mask = voxels(written)
        assert not (mask.astype(bool) & other).any()
        assert all(mask[tuple(click)] for click in clicks)
        cut = (voxels(free).astype(bool) & other).any()
        overlaps += cut
        assert params["kept"] == ["anterior"][:cut] and free_params["kept"] == []
        np.testing.assert_array_equal(finished.of(image, None, SHAPE)["anterior"].mask, other)
        again, _ = task(dict(request))
        np.testing.assert_array_equal(voxels(again), mask)
        task({**request, "foreground": [*clicks, *outside(other, mask.astype(bool), seed=seed + 9, count=1)]})
        np.testing.assert_array_equal(voxels(task(dict(request))[0]), mask, "the click is taken back")
    assert overlaps, "nothing was to be protected"


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("name", ["axial", "sagittal, as scanners store it", "coronal"])
def test_what_a_neighbour_cuts_off_goes(model, tmp_path, name, propagate):
    """A bright disc with a wall through it: on the far side of the wall nothing was clicked."""
    affine, _ = GRIDS[name]
    shape = (40, 40, 6)
    values = np.random.RandomState(0).randint(0, 50, shape)
    i, j = np.ogrid[:40, :40]
    values[(i - 20) ** 2 + (j - 20) ** 2 < 170] += 1000
    image = write(tmp_path / "image.nii.gz", values.astype(np.int16), affine)
    wall = np.zeros(shape, bool)
    wall[22:24] = True
    finished = FinishedObjects(model.labels)
    finished.keep(image, None, "anterior", wall)
    task = PromptedTask(model, propagate, finished)
    asked = {"image": image, "device": "cpu", "label": "posterior", "foreground": [[20, 20, 3]]}
    free = voxels(task({**asked, "replace": True})[0])[..., 3]
    finished.forget(image)
    finished.keep(image, None, "anterior", wall)
    kept = voxels(task(dict(asked))[0])[..., 3]
    assert free[24:].any() and free[:22].sum() > 20, "else there is nothing to see"
    assert not kept[22:].any()
    np.testing.assert_array_equal(kept[:22], free[:22])


def test_clicks_and_boxes_inside_a_neighbour_are_refused(model, image):
    finished = FinishedObjects(model.labels)
    task = PromptedTask(model, finished=finished)
    other = np.zeros(SHAPE, bool)
    other[2:8, 3:9, 4:6] = True
    finished.keep(image, None, "anterior", other)
    asked = {"image": image, "device": "cpu", "label": "Posterior"}
    for prompt, what in (
        ({"foreground": [[12, 14, 4], [7, 3, 5]]}, "A point, [7, 3, 5], lies in anterior"),
        ({"roi": [2, 7, 3, 8, 4, 5]}, "The box, [2, 3, 4] to [7, 8, 5], lies in anterior"),
        ({"scribbles": [{"inside": True, "points": [[9, 8, 4], [3, 8, 4]]}]}, "A point, ["),
    ):
        with pytest.raises(HTTPException) as caught:
            task({**asked, **prompt})
        assert caught.value.status_code == 422 and what in caught.value.detail and "replace" in caught.value.detail
        task({**asked, **prompt, "replace": True})
        finished.forget(image)
        finished.keep(image, None, "anterior", other)
    for prompt in (
        {"foreground": [[8, 3, 5]], "background": [[7, 3, 5]]},
        {"roi": [2, 7, 3, 8, 4, 6]},
        {"roi": [2, 8, 3, 8, 4, 5]},
    ):
        task({**asked, **prompt})
    for label in ("anterior", "ANTERIOR", "background", None):
        task({**asked, "label": label, "foreground": [[3, 4, 4]]})


def test_a_click_on_the_rim_is_the_outermost_voxel(model, image):
    finished = FinishedObjects(model.labels)
    other = np.zeros(SHAPE, bool)
    other[4:6] = True
    finished.keep(image, None, "anterior", other)
    task = PromptedTask(model, finished=finished)
    last = [n - 0.5 for n in SHAPE[:2]]
    for foreground in ([[*last, 4]], [[-0.5, -0.5, 4]], [[-0.5, last[1], 4], [*last, 4]]):
        mask = voxels(task({"image": image, "device": "cpu", "label": "posterior", "foreground": foreground})[0])
        assert mask.any() and not mask[other].any()
    other[0] = True
    finished.keep(image, None, "anterior", other)
    with pytest.raises(HTTPException, match="A point, .0, 17, 4., lies in anterior"):
        task({"image": image, "device": "cpu", "label": "posterior", "foreground": [[-0.5, last[1], 4]]})


def test_an_annotator_prompts_one_after_the_other(model, image):
    """The second has nothing of the first, the first corrected has nothing of the second, by slice and as a whole."""
    finished = FinishedObjects(model.labels)
    by_slice, whole = PromptedTask(model, False, finished), PromptedTask(model, True, finished)
    asked = {"image": image, "device": "cpu"}
    box = [1, 12, 2, 15]
    one = voxels(whole({**asked, "label": "anterior", "roi": [*box, 5, 5]})[0]).astype(bool)
    np.testing.assert_array_equal(finished.of(image, None, SHAPE)["anterior"].mask, one)
    free = np.argwhere(~one[..., 5])[0]
    two = voxels(by_slice({**asked, "label": "tumour", "foreground": [[*free.tolist(), 5]]})[0]).astype(bool)
    assert two.any() and not (one & two).any()
    corrected = voxels(by_slice({**asked, "label": "anterior", "roi": [*box, 5, 5]})[0]).astype(bool)
    assert not (corrected & two).any()
    now = finished.of(image, None, SHAPE)["anterior"].mask
    np.testing.assert_array_equal(now[..., 5], corrected[..., 5])
    np.testing.assert_array_equal(np.delete(now, 5, 2), np.delete(one, 5, 2), "the slices that were not prompted")


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_slices_of_another_plane_are_kept_as_they_were_prompted(model, tmp_path, plane):
    affine, _ = GRIDS["oblique"]
    image = write(tmp_path / "image.nii.gz", noise(), affine)
    finished = FinishedObjects(model.labels)
    former = blob(1)
    finished.keep(image, None, "anterior", former)
    click = [9, 13, 4]
    request = {"image": image, "device": "cpu", "label": "anterior", "plane": plane, "foreground": [click]}
    mask = voxels(PromptedTask(model, finished=finished)(request)[0]).astype(bool)
    axis = {"sagittal": 0, "coronal": 1}[plane]
    expected = former.copy()
    np.moveaxis(expected, axis, 0)[click[axis]] = np.moveaxis(mask, axis, 0)[click[axis]]
    np.testing.assert_array_equal(finished.of(image, None, SHAPE)["anterior"].mask, expected)


def test_pictures_have_neighbours_too(tmp_path):
    model = ServedModel(small_bundle(tmp_path, "chest_xray"))
    path = str(tmp_path / "xray.png")
    Image.fromarray(noise((30, 20)).astype(np.uint8)).save(path)
    finished = FinishedObjects(model.labels)
    lung = blob(3, (20, 30), share=0.9)
    finished.keep(path, None, "left lung", lung)
    task = PromptedTask(model, finished=finished)
    inside, free = np.argwhere(lung)[0].tolist(), np.argwhere(~lung)[0].tolist()
    with pytest.raises(HTTPException, match="left lung"):
        task({"image": path, "device": "cpu", "label": "heart", "foreground": [inside]})
    written, _ = task({"image": path, "device": "cpu", "label": "heart", "foreground": [free]})
    with Image.open(written) as mask:
        heart = np.asarray(mask).T.astype(bool)
    assert heart[tuple(free)] and not (heart & lung).any()
    automatic, params = AutomaticTask(model, finished)({"image": path, "device": "cpu"})
    with Image.open(automatic) as mask:
        values = np.asarray(mask).T
    assert params["kept"] == ["left lung", "heart"]
    np.testing.assert_array_equal(values == model.labels["left lung"], lung)
    np.testing.assert_array_equal(values == model.labels["heart"], heart)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("name", GRIDS)
def test_a_mask_goes_to_the_prepared_image_as_the_image_does(model, tmp_path, name, plane):
    mask = blob(5)
    image = write(tmp_path / "image.nii.gz", np.where(mask, 1000, 0).astype(np.int16), GRIDS[name][0])
    prepared = model.prepare(image, plane)
    np.testing.assert_array_equal(Placing(prepared).mask_in_image(mask), prepared[0].numpy() > 0.5)


def test_a_mask_on_an_image_that_was_resampled(model, tmp_path):
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 5:14, 2:6] = True
    image = model.prepare(write(tmp_path / "image.nii.gz", mask.astype(np.int16), GRIDS["axial"][0]))
    fine = Spacing(tuple(np.array(image.pixdim) / 2), mode="nearest", scale_extent=True)(image)
    found = Placing(fine).mask_in_image(mask)
    assert found.shape == fine.shape[1:] and (found != (fine[0].numpy() > 0.5)).mean() < 0.01


# --- automatic masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_an_automatic_mask_has_finished_objects_as_they_are(model, tmp_path, name):
    image = write(tmp_path / "image.nii.gz", noise(), GRIDS[name][0])
    finished = FinishedObjects(model.labels)
    task = AutomaticTask(model, finished)
    asked = {"image": image, "device": "cpu"}
    own, params = task(dict(asked))
    assert params["kept"] == [] and "own" not in params
    own = voxels(own)
    mask = blob(2)
    finished.keep(image, None, "anterior", mask)
    finished.keep(image, None, "tumour", blob(3))  # no class of the model
    written, params = task(dict(asked))
    answer = voxels(written)
    assert params["kept"] == ["anterior"]
    np.testing.assert_array_equal(answer == 1, mask)
    np.testing.assert_array_equal(answer == 2, (own == 2) & ~mask)
    assert (own == 1).any() or (own[mask] == 2).any(), "there was something to keep out"
    np.testing.assert_array_equal(voxels(params["own"]), own)
    replaced, params = task({**asked, "replace": True})
    np.testing.assert_array_equal(voxels(replaced), own)
    assert params["kept"] == [] and "own" not in params


def test_slicer_shows_the_options(model):
    assert AutomaticTask(model).config()["replace"] is False
    for propagate in (False, True):
        config = PromptedTask(model, propagate).config()
        assert config["replace"] is False and config["plane"] == ["auto", "axial", "coronal", "sagittal"]
