"""Cases of the challenge, written here as its format has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose, MapLabelValued, Orientation

from medsaga.data import (
    LoadChallengeCased,
    SliceDataset,
    challenge_datalist,
    challenge_modality,
    read_challenge_case,
    write_challenge_result,
)
from medsaga.transforms import CheckCased


@pytest.fixture
def volume(tmp_path):
    """A volume (D, H, W) of 4 × 10 × 12 with two objects."""
    gts = np.zeros((4, 10, 12), dtype=np.uint8)
    gts[1:3, 2:5, 3:9], gts[0:2, 6:8, 1:4] = 1, 4
    random = np.random.RandomState(0)
    arrays = {
        "imgs": (random.randint(20, 60, gts.shape) + 40 * (gts > 0)).astype(np.uint8),
        "gts": gts,
        "boxes": np.array([[3, 2, 1, 8, 4, 2], [1, 6, 0, 3, 7, 1]]),
        "spacing": np.array([0.7, 0.8, 5.0]),
    }
    path = tmp_path / "3DBox_CT_0001.npz"
    np.savez_compressed(path, **arrays)
    return path, arrays


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("3DBox_CT_0012.npz", "CT"),
        ("2DBox_XRay_chest_1.npz", "XRay"),
        ("2D_US_1.npz", "US"),
        ("3D_MR_1.npz", "MR"),
        ("CT_Abd_FLARE22_1.npz", "CT"),
        ("X-Ray_7.npz", "X-Ray"),
    ],
)
def test_modality_of_a_name(name, modality):
    assert challenge_modality(f"some/3DBox_PET_folder/{name}") == modality


@pytest.mark.parametrize("name", ["0012.npz", "2DBox_1.npz", "case.npz"])
def test_a_name_without_a_modality_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        challenge_modality(name)


def test_a_volume_is_read_channel_first_with_slices_last(volume):
    path, arrays = volume
    case = read_challenge_case(path)
    assert case["image"].shape == case["label"].shape == (1, 10, 12, 4)
    assert case["modality"] == "CT"
    for z in range(4):
        pixels = arrays["imgs"][z].astype(float)
        expected = (pixels - pixels.min()) / (pixels.max() - pixels.min())
        np.testing.assert_allclose(case["image"][0, ..., z].numpy(), expected, atol=1e-6)
        assert np.array_equal(case["label"][0, ..., z].numpy(), arrays["gts"][z])


def test_boxes_hold_their_objects(volume):
    path, _ = volume
    case = read_challenge_case(path)
    for (x0, y0, z0, x1, y1, z1), value in zip(case["boxes"].int().tolist(), (1, 4)):
        inside = case["label"][0, y0 : y1 + 1, x0 : x1 + 1, z0 : z1 + 1]
        assert int((inside == value).sum()) == int((case["label"] == value).sum())


def test_spacing_is_x_y_z_and_the_axes_are_those_of_the_bundles(volume):
    image = read_challenge_case(volume[0])["image"]
    np.testing.assert_allclose(image.pixdim, [0.8, 0.7, 5.0])  # of rows, columns, slices
    turned = Orientation("PLS")(image)
    assert torch.equal(turned.as_tensor(), image.as_tensor())
    np.testing.assert_allclose(turned.affine, image.affine)


@pytest.mark.parametrize(("shape", "channels"), [((10, 12, 3), 3), ((10, 12), 1)])
def test_an_image_is_read_with_its_channels(tmp_path, shape, channels):
    pixels = np.random.RandomState(0).randint(0, 200, shape).astype(np.uint8)
    path = tmp_path / "2DBox_Fundus_1.npz"
    np.savez(path, imgs=pixels, boxes=np.array([[1, 2, 5, 6]]), gts=np.ones((10, 12), np.uint16))
    case = read_challenge_case(path)
    assert case["image"].shape == (channels, 10, 12) and case["label"].shape == (1, 10, 12)
    assert case["boxes"].tolist() == [[1, 2, 5, 6]] and case["modality"] == "Fundus"
    expected = (pixels.astype(float) - pixels.min()) / (int(pixels.max()) - int(pixels.min()))
    found = case["image"].numpy()
    np.testing.assert_allclose(np.moveaxis(found, 0, -1) if channels == 3 else found[0], expected, atol=1e-6)


def test_an_image_of_three_columns_or_rows_is_told_apart_by_its_boxes(tmp_path):
    path = tmp_path / "CT_1.npz"
    np.savez(path, imgs=np.eye(12, dtype=np.uint8)[:, :9].reshape(4, 9, 3), boxes=np.array([[0, 0, 0, 1, 1, 1]]))
    assert read_challenge_case(path)["image"].shape == (1, 9, 3, 4)


def test_an_empty_slice_is_zero(tmp_path):
    path = tmp_path / "MR_1.npz"
    np.savez(path, imgs=np.full((2, 5, 6), 7, np.uint8), boxes=np.array([[0, 0, 0, 1, 1, 1]]))
    assert not read_challenge_case(path)["image"].any()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"gts": np.ones((3, 3))}, "no array 'imgs'"),
        ({"imgs": np.ones((4, 5, 6)), "boxes": np.ones((2, 5))}, r"boxes has the shape \(2, 5\)"),
        ({"imgs": np.ones((4, 5)), "boxes": np.ones((2, 6))}, r"imgs has the shape \(4, 5\)"),
        ({"imgs": np.ones((4, 5, 6)), "boxes": np.ones((2, 4))}, r"imgs has the shape \(4, 5, 6\)"),
        ({"imgs": np.ones((4, 5, 6)), "gts": np.ones((4, 5, 7))}, "gts has the shape"),
        ({"imgs": np.ones((4, 5, 6)), "spacing": np.array([1, 0, 1])}, "spacing"),
        ({"imgs": np.array([{"a": 1}])}, "is damaged or holds something other"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, arrays, message):
    path = tmp_path / "CT_wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"CT_wrong.npz.*{message}"):
        read_challenge_case(path)


def test_a_truncated_file_is_named(volume):
    path, _ = volume
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=path.name):
        read_challenge_case(path)
    with pytest.raises(FileNotFoundError):
        read_challenge_case(path.with_name("CT_none.npz"))


@pytest.mark.parametrize(("largest", "dtype"), [(2, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_a_result_lies_as_the_image_did(tmp_path, largest, dtype):
    numbers = torch.zeros(1, 10, 12, 4, dtype=torch.int32)
    numbers[0, 2:5, 3:9, 1] = largest
    write_challenge_result(tmp_path / "out" / "CT_1.npz", numbers)
    with np.load(tmp_path / "out" / "CT_1.npz") as file:
        assert file.files == ["segs"]
        found = file["segs"]
    assert found.dtype == dtype and found.shape == (4, 10, 12)
    assert (found == largest).sum() == 18 and (found[1, 2:5, 3:9] == largest).all()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["CT_1.npz"]


def test_an_images_result_is_of_two_dimensions(tmp_path):
    write_challenge_result(tmp_path / "US_1.npz", torch.ones(1, 5, 6, dtype=torch.uint8))
    assert np.load(tmp_path / "US_1.npz")["segs"].shape == (5, 6)


def test_a_folder_becomes_a_datalist_that_slices_are_cut_from(volume, tmp_path):
    (tmp_path / "more").mkdir()
    np.savez(
        tmp_path / "more" / "2DBox_US_1.npz", imgs=np.arange(120, dtype=np.uint8).reshape(10, 12), gts=np.eye(10, 12)
    )
    cases = challenge_datalist(tmp_path)
    assert [(c["modality"], c["patient"]) for c in cases] == [("CT", "3DBox_CT_0001"), ("US", "2DBox_US_1")]
    keys = ["image", "label"]
    preprocessing = Compose([LoadChallengeCased(keys), MapLabelValued("label", [4], [2]), CheckCased(3)])
    slices = SliceDataset(cases, preprocessing, 3, tmp_path / "cache")
    assert len(slices) == 5
    assert slices[1]["label"].unique().tolist() == [0, 1, 2] and slices[4]["label"].unique().tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match="No npz"):
        challenge_datalist(tmp_path / "cache" / "none")


def test_without_labels_there_is_nothing_to_learn(tmp_path):
    np.savez(tmp_path / "CT_1.npz", imgs=np.eye(5, dtype=np.uint8))
    with pytest.raises(ValueError, match="no array 'gts'"):
        LoadChallengeCased(["image", "label"])({"image": tmp_path / "CT_1.npz", "label": tmp_path / "CT_1.npz"})
