"""Masks lie on their image's own voxels, whatever way it was acquired: against the bundle, nibabel, PIL and pynrrd."""

from __future__ import annotations

import nibabel as nib
import nrrd
import numpy as np
import pytest
import torch
from fastapi import HTTPException
from PIL import Image
from scipy.spatial.transform import Rotation
from scipy.stats import entropy

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.infers import AutomaticTask, PromptedTask
from lib.infers.prompts import slice_prompts
from lib.served_model import ServedModel

from medsaga.transforms import fit_square

from ..integration.bundles import run
from ..integration.dicom.series import write_volume, write_xray
from ..integration.server import small_bundle


def affine_of(axes, spacing, rotation=(0, 0, 0), shear=0.0):
    """From voxels that run along ``axes`` (as "PIR") to RAS, turned by degrees about R, A and S."""
    matrix = np.zeros((3, 3))
    for column, code in enumerate(axes):
        place = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        matrix[place, column] = 1 if code in "RAS" else -1
    matrix = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix @ (np.eye(3) + shear * np.eye(3, k=1)) * spacing
    affine[:3, 3] = [-31.5, 12.25, 87]
    return affine


SHAPE = (14, 18, 12)
# name: affine, and the axis of the file along which slices were acquired
GRIDS = {
    "sagittal, slices first": (affine_of("RAS", (4, 1, 1)), 0),
    "sagittal, as scanners store it": (affine_of("PIL", (1, 1, 4)), 2),
    "coronal": (affine_of("LIA", (1, 1, 5)), 2),
    "axial": (affine_of("LPS", (1, 1, 4)), 2),
    "no thick axis": (affine_of("RAS", (1, 1, 1)), 2),
    "oblique": (affine_of("LPS", (0.7, 0.9, 4), (17, -9, 31)), 2),
    "45 degrees": (affine_of("LPS", (1, 1, 4), (0, 0, 45)), 2),
    "45 degrees, sagittal": (affine_of("PIL", (1, 1, 4), (45, 0, 0)), 2),
    "sheared": (affine_of("LPS", (1, 1, 4), (10, 5, 3), shear=0.02), 2),
}


@pytest.fixture(scope="module")
def volumes_model(tmp_path_factory):
    return ServedModel(small_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def xrays_model(tmp_path_factory):
    return ServedModel(small_bundle(tmp_path_factory.mktemp("bundle"), "chest_xray"))


def noise(shape=SHAPE):
    return np.random.RandomState(0).randint(100, 900, shape).astype(np.int16)


def write(path, values, affine):
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


@pytest.mark.parametrize("name", GRIDS)
def test_a_click_is_answered_on_its_slice_in_the_files_voxels(volumes_model, tmp_path, name):
    affine, across = GRIDS[name]
    image = write(tmp_path / "image.nii.gz", noise(), affine)
    click = [9, 13, 4]
    written, _ = PromptedTask(volumes_model)({"image": image, "foreground": [click], "device": "cpu"})
    mask = nib.load(written)
    values = np.asarray(mask.dataobj)
    assert values.shape == SHAPE and values[tuple(click)] == 1
    assert np.unique(np.nonzero(values)[across]).tolist() == [click[across]], "on the clicked slice alone"
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)


@pytest.mark.parametrize("name", GRIDS)
def test_clicks_and_boxes_are_found_where_they_were_set(volumes_model, tmp_path, name):
    affine, _ = GRIDS[name]
    values = np.zeros(SHAPE, np.int16)
    values[3:7, 5:14, 2:6] = 500
    values[8:11, 13:16, 7:10] = 1000  # about what is clicked on; fewer would be cut off as the brightest percentile
    image = volumes_model.prepare(write(tmp_path / "image.nii.gz", values, affine))
    request = {"foreground": [[9, 14, 8]], "background": [[3, 5, 2]], "roi": [3, 6, 5, 13, 2, 5]}
    prompts = slice_prompts(request, image)
    found = np.asarray(image[0])
    inside = [(row, column, k) for k, p in prompts.items() for row, column in p.inside]
    np.testing.assert_allclose(inside[0], np.argwhere(found == found.max()).mean(axis=0), atol=1e-3)
    boxed = np.zeros(found.shape, bool)
    for k, prompt in prompts.items():
        if prompt.box is not None:
            row0, column0, row1, column1 = np.rint(prompt.box).astype(int)
            boxed[row0 : row1 + 1, column0 : column1 + 1, k] = True
    middle = (found > found.min()) & (found < found.max())
    np.testing.assert_array_equal(boxed, middle)
    outside = [(row, column, k) for k, p in prompts.items() for row, column in p.outside]
    assert middle[tuple(np.rint(outside[0]).astype(int))]


@pytest.mark.parametrize("name", GRIDS)
def test_several_boxes_are_each_on_their_slices(volumes_model, tmp_path, name):
    affine, _ = GRIDS[name]
    image = volumes_model.prepare(write(tmp_path / "image.nii.gz", noise(), affine))
    boxes = [[3, 6, 5, 13, 2, 2], [4, 8, 4, 9, 7, 7]] if name != "sagittal, slices first" else None
    boxes = boxes or [[2, 2, 3, 6, 5, 10], [7, 7, 4, 8, 4, 9]]
    together = slice_prompts({"roi": boxes[0] + boxes[1]}, image)
    assert together == {**slice_prompts({"roi": boxes[0]}, image), **slice_prompts({"roi": boxes[1]}, image)}
    assert len(together) == 2


@pytest.mark.parametrize("name", GRIDS)
def test_the_automatic_mask_is_the_bundles(volumes_model, tmp_path, name):
    affine, _ = GRIDS[name]
    image = write(tmp_path / "image.nii.gz", noise(), affine)
    written, _ = AutomaticTask(volumes_model)({"image": image, "device": "cpu"})
    mask = nib.load(written)
    (expected,) = by_bundle(volumes_model, "hippocampus", image, tmp_path / "bundle")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(nib.load(expected).dataobj))
    assert len(np.unique(np.asarray(mask.dataobj))) > 1, "a mask of nothing would show nothing"
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    assert mask.get_data_dtype() == np.uint8


@pytest.mark.parametrize("name", GRIDS)
def test_the_automatic_answer_says_on_which_slice_it_is_least_sure(volumes_model, tmp_path, name):
    affine, _ = GRIDS[name]
    image = write(tmp_path / "image.nii.gz", noise(), affine)
    _, params = AutomaticTask(volumes_model)({"image": image, "device": "cpu", "replace": True})
    prepared = volumes_model.prepare(image)
    slices = prepared.as_tensor().permute(3, 0, 1, 2).float()
    with torch.no_grad():
        p = volumes_model.network()(fit_square(slices, 64)).softmax(dim=1).numpy()
    doubt = (entropy(p, axis=1) * (1 - p[:, 0])).sum(axis=(1, 2))
    turned = np.linalg.inv(affine) @ prepared.affine.numpy()
    voxel = np.rint(turned @ [0, 0, int(doubt.argmax()), 1]).astype(int)
    across = int(np.abs(turned[:3, 2]).argmax())
    assert params.get("least_sure_slice") == (voxel[2] if across == 2 else None)


def by_bundle(model, name, image, folder):
    settings = {"bundle_root": str(model.path), "model_path": str(model.checkpoint())}
    small = {"network_def#encoder": "vit_test", "image_size": 64}
    run("evaluating", name, "inference", **settings, **small, dataset_dir=image, output_dir=str(folder))
    return list(folder.glob("*_seg.*"))


@pytest.mark.parametrize("name", ["oblique", "sheared"])
@pytest.mark.parametrize("extension", [".nrrd", ".seg.nrrd"])
def test_answers_as_nrrd_lie_there_too(volumes_model, tmp_path, name, extension):
    affine, _ = GRIDS[name]
    request = {"image": write(tmp_path / "image.nii.gz", noise(), affine), "device": "cpu", "result_dtype": "uint16"}
    nifti, _ = AutomaticTask(volumes_model)(dict(request))
    written, _ = AutomaticTask(volumes_model)({**request, "result_extension": extension})
    assert written.endswith(extension)
    values, header = nrrd.read(written)
    assert values.dtype == np.uint16, "OHIF asks for it"
    np.testing.assert_array_equal(values, np.asarray(nib.load(nifti).dataobj))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    np.testing.assert_allclose(header["space directions"].T, lps[:3, :3], atol=1e-5)
    np.testing.assert_allclose(header["space origin"], lps[:3, 3], atol=1e-4)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".dcm", "x/../y.nii"])
def test_formats_that_would_lose_something_are_refused(volumes_model, tmp_path, extension):
    request = {"image": write(tmp_path / "image.nii.gz", noise(), np.eye(4)), "device": "cpu"}
    with pytest.raises(HTTPException, match="result_extension") as caught:
        AutomaticTask(volumes_model)({**request, "result_extension": extension})
    assert caught.value.status_code == 422


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_the_mask_of_a_picture_is_a_picture_without_losses(xrays_model, tmp_path, suffix):
    path = tmp_path / f"xray{suffix}"
    Image.fromarray(noise((30, 20)).astype(np.uint8)).save(path)
    written, _ = AutomaticTask(xrays_model)({"image": str(path), "device": "cpu"})
    (expected,) = by_bundle(xrays_model, "chest_xray", str(path), tmp_path / "bundle")
    with Image.open(written) as mask, Image.open(expected) as theirs:
        assert mask.format == "PNG" and mask.size == (20, 30)
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(theirs))
    click = [[12, 21]]
    for points in (click, [[*click[0], 0]]):  # Slicer counts the one slice
        written, _ = PromptedTask(xrays_model)({"image": str(path), "device": "cpu", "foreground": points})
        with Image.open(written) as mask:
            assert mask.size == (20, 30) and mask.getpixel((12, 21)) == 1


# RAS axis across the slices of a plane
ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}
CANONICAL = affine_of("RAS", (0.8, 1.3, 3))
VIEWS = {
    "flipped": [[0, -1], [1, 1], [2, -1]],
    "permuted": [[1, 1], [2, -1], [0, 1]],
    "all else": [[2, -1], [0, -1], [1, -1]],
}


@pytest.mark.parametrize("plane", ACROSS)
@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_slices_of_any_plane_are_prompted_in_the_files_voxels(volumes_model, tmp_path, plane, propagate, view):
    """Where it was clicked, on the slices of that plane, and however the file's axes run."""
    image = nib.Nifti1Image(noise(), CANONICAL)
    turned = image.as_reoriented(np.array(VIEWS[view]))
    inside, outside = [[9, 13, 4], [9, 13, 5], [8, 13, 4], [9, 12, 4]], [[9, 13, 8], [4, 13, 4], [9, 4, 4]]
    roi = np.array([[5, 10], [6, 14], [3, 7]])
    masks = []
    for name, of in (("image", image), ("turned", turned)):
        nib.save(of, tmp_path / f"{name}.nii.gz")
        there = np.linalg.inv(of.affine) @ image.affine

        def moved(points, there=there):
            return np.rint(np.pad(points, ((0, 0), (0, 1)), constant_values=1) @ there.T)[:, :3].astype(int).tolist()

        request = {"image": str(tmp_path / f"{name}.nii.gz"), "device": "cpu", "plane": plane, "label": "anterior"}
        box = np.sort(np.array(moved(roi.T)).T, axis=1).ravel().tolist()
        for prompts in (
            {"foreground": moved(inside[:1])},
            {"foreground": moved(inside), "background": moved(outside)},
            {"roi": box},
        ):
            written, _ = PromptedTask(volumes_model, propagate)({**request, **prompts})
            mask = nib.load(written)
            np.testing.assert_allclose(mask.affine, of.affine, atol=1e-5)
            values = np.asarray(mask.dataobj)
            assert all(values[tuple(voxel)] for voxel in prompts.get("foreground", []))
            assert not any(values[tuple(voxel)] for voxel in prompts.get("background", []))
            masks.append(nib.Nifti1Image(values, of.affine))
    axis = ACROSS[plane]
    for here, there in zip(masks[:3], masks[3:]):
        expected = here.as_reoriented(np.array(VIEWS[view]))
        np.testing.assert_array_equal(np.asarray(there.dataobj), np.asarray(expected.dataobj))
    if not propagate:
        first, corrected, boxed = (np.unique(np.nonzero(np.asarray(mask.dataobj))[axis]).tolist() for mask in masks[:3])
        assert first == [inside[0][axis]] and corrected == sorted({voxel[axis] for voxel in inside})
        assert set(boxed) <= set(range(roi[axis, 0], roi[axis, 1] + 1))


@pytest.mark.parametrize("name", GRIDS)
def test_planes_do_not_share_what_is_kept_of_an_image(volumes_model, tmp_path, name):
    image = write(tmp_path / "image.nii.gz", noise(), GRIDS[name][0])
    task = PromptedTask(volumes_model)
    asked = {"image": image, "device": "cpu", "foreground": [[9, 13, 4]]}
    first = {plane: np.asarray(nib.load(task({**asked, "plane": plane})[0]).dataobj) for plane in ("auto", *ACROSS)}
    slices = {plane: [np.unique(at).tolist() for at in np.nonzero(mask)] for plane, mask in first.items()}
    for axis in range(3):
        assert any(slices[plane][axis] == [[9, 13, 4][axis]] for plane in ACROSS)
    own = np.asarray(nib.load(task(dict(asked))[0]).dataobj)
    np.testing.assert_array_equal(first["auto"], own)
    for plane, mask in first.items():
        np.testing.assert_array_equal(np.asarray(nib.load(task({**asked, "plane": plane})[0]).dataobj), mask)


def test_a_plane_of_a_picture_and_unknown_ones_are_refused(volumes_model, xrays_model, tmp_path):
    path = tmp_path / "xray.png"
    Image.fromarray(noise((30, 20)).astype(np.uint8)).save(path)
    volume = write(tmp_path / "image.nii.gz", noise(), np.eye(4))
    asked = {"device": "cpu", "foreground": [[1, 1, 1]]}
    for model, image, plane in ((xrays_model, str(path), "axial"), (volumes_model, volume, "oblique")):
        with pytest.raises(HTTPException, match="plane is") as caught:
            PromptedTask(model)({**asked, "image": image, "plane": plane})
        assert caught.value.status_code == 422


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([[3, 4, 5]], [[3, 4, 5]]),
        ([[3, 4, 5], [3, 4, 5]], [[3, 4, 5]]),
        ([[1, 1, 2], [4, 1, 2]], [[2, 1, 2], [3, 1, 2], [1, 1, 2], [4, 1, 2]]),
        ([[2, 3, 2], [2, 1, 2], [4, 1, 2]], [[2, 1, 2], [2, 2, 2], [3, 1, 2], [2, 3, 2], [4, 1, 2]]),
    ],
)
def test_a_scribble_is_clicks_along_its_line_from_the_middle(volumes_model, tmp_path, line, expected):
    image = volumes_model.prepare(write(tmp_path / "image.nii.gz", noise(), GRIDS["sagittal, as scanners store it"][0]))
    clicks = {"foreground": [[9, 9, 2], *expected], "background": [[11, 12, 2]]}
    scribbles = [{"inside": True, "points": line}, {"inside": False, "points": [[11, 12, 2]]}]
    assert slice_prompts({"foreground": [[9, 9, 2]], "scribbles": scribbles}, image) == slice_prompts(clicks, image)


def test_a_long_scribble_is_few_clicks_along_all_of_it(xrays_model, tmp_path):
    path = tmp_path / "xray.png"
    Image.fromarray(noise((600, 500)).astype(np.uint8)).save(path)
    image = xrays_model.prepare(str(path))
    line = [[10, 10], [400, 10], [400, 590]]
    prompt = slice_prompts({"scribbles": [{"inside": True, "points": line}]}, image)[0]
    assert len(prompt.inside) == 20 and prompt.outside == ()
    points = np.array(prompt.inside)[:, ::-1]  # columns, rows of the picture
    assert {(10, 10), (400, 590)} <= {tuple(p) for p in points.astype(int).tolist()}
    along = np.sort(np.abs(points - [10, 10]).sum(axis=1))
    assert np.diff(along).min() > 45 and np.diff(along).max() < 60
    assert 400 < np.abs(points[0] - [10, 10]).sum() < 560, "the middle first"


def test_a_mask_follows_its_scribbles(volumes_model, tmp_path):
    image = write(tmp_path / "image.nii.gz", noise(), GRIDS["oblique"][0])
    inside, outside = [[2, 3, 4], [10, 12, 4]], [[2, 14, 4], [11, 3, 4]]
    scribbles = [{"inside": True, "points": inside}, {"inside": False, "points": outside[:1]}]
    written, _ = PromptedTask(volumes_model)({"image": image, "device": "cpu", "scribbles": scribbles})
    values = np.asarray(nib.load(written).dataobj)
    assert all(values[tuple(voxel)] for voxel in inside) and not values[tuple(outside[0])]
    wrong = [{"inside": True, "points": [[1, 2]]}]
    assert "scribbles must have points, each of 3" in refused({"scribbles": wrong}, volumes_model.prepare(image))


def test_prompts_of_another_dimension_are_refused(volumes_model, xrays_model, tmp_path):
    image = volumes_model.prepare(write(tmp_path / "image.nii.gz", noise(), np.eye(4)))
    for request in (
        {"foreground": [[1, 2]]},
        {"foreground": [[1, 2, 3, 4]]},
        {"foreground": [1, 2, 3]},
        {"background": "a"},
    ):
        assert "of 3 voxel indices" in refused(request, image)
    for roi in ([1, 2, 3, 4], [1, 2, 3, 4, 5], [[1, 2], [3, "x"], [5, 6]], [1, 2, 3, 4, 5, 6, 7], [1, 2] * 5):
        assert "6 numbers" in refused({"roi": roi}, image)


def refused(request, image):
    with pytest.raises(HTTPException) as caught:
        slice_prompts(request, image)
    assert caught.value.status_code == 422
    return caught.value.detail


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
def test_an_xray_from_the_dicom_store_is_prepared_as_its_own_file_is(xrays_model, tmp_path, inverted):
    from medsaga.nifti import write_series

    (tmp_path / "1.2.3").mkdir()
    series = write_xray(tmp_path / "1.2.3", noise((30, 20)).astype(int), "DX", "x", inverted)
    write_series(tmp_path / "1.2.3", tmp_path / "1.2.3.nii.gz")
    assert nib.load(tmp_path / "1.2.3.nii.gz").shape == (30, 20)
    cached = xrays_model.prepare(str(tmp_path / "1.2.3.nii.gz"))
    for path in (series.files[0], tmp_path / "1.2.3"):
        direct = np.asarray(xrays_model.prepare(str(path)))
        np.testing.assert_array_equal(np.asarray(cached).reshape(direct.shape), direct)
        assert direct.shape == (1, 20, 30), "rows, columns"
    # bright is bright, whatever the file's photometric interpretation
    low, high = np.percentile(series.voxels, (0.5, 99.5))
    scaled = ((series.voxels - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(direct[0].T, scaled, atol=1e-5)


def test_a_volume_from_the_dicom_store_is_prepared_as_its_own_files_are(volumes_model, tmp_path):
    from medsaga.nifti import write_series

    (tmp_path / "1.2.3").mkdir()
    write_volume(tmp_path / "1.2.3", noise().astype(int), affine_of("LPS", (0.7, 0.9, 4), (17, -9, 31)), "CT", "x")
    write_series(tmp_path / "1.2.3", tmp_path / "1.2.3.nii.gz")
    cached, direct = (volumes_model.prepare(str(tmp_path / name)) for name in ("1.2.3.nii.gz", "1.2.3"))
    np.testing.assert_array_equal(np.asarray(cached), np.asarray(direct))
    np.testing.assert_allclose(np.asarray(cached.affine), np.asarray(direct.affine), atol=1e-4)
    written, _ = AutomaticTask(volumes_model)({"image": str(tmp_path / "1.2.3"), "device": "cpu"})
    assert written.endswith(".nii.gz"), "of a folder that was uploaded"
    np.testing.assert_allclose(nib.load(written).affine, nib.load(tmp_path / "1.2.3.nii.gz").affine, atol=1e-4)


def test_models_of_pictures_take_no_volumes(xrays_model, tmp_path):
    image = write(tmp_path / "image.nii.gz", noise(), np.eye(4))
    with pytest.raises(HTTPException, match="image.nii.gz") as caught:
        PromptedTask(xrays_model)({"image": image, "device": "cpu", "foreground": [[1, 1]]})
    assert caught.value.status_code == 422 and str(tmp_path) not in caught.value.detail
