"""A person's labels within a prediction."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Invertd
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from medsaga.transforms import FillUnlabelledd, OrientSlicesd, ReadImaged

SHAPE = (8, 10, 6)  # left-right, front-back, up-down


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIL"])
def test_known_slices_keep_their_label_in_any_orientation(tmp_path, codes):
    truth = np.random.default_rng(0).integers(1, 3, SHAPE).astype(np.uint8)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([1.5, 2, 3, 1]) @ inv_ornt_aff(turn, SHAPE)
    stored = nib.orientations.apply_orientation(truth, turn)
    files = {name: str(tmp_path / f"{name}.nii") for name in ("image", "label")}
    for path in files.values():
        nib.save(nib.Nifti1Image(stored, affine), path)
    read = Compose([ReadImaged(["image", "label"]), OrientSlicesd(["image", "label"], plane="axial")])
    data = read(files)
    data["pred"] = torch.zeros_like(data["image"])
    data["known_slices"] = np.array([1, 4])  # from below, as axial slices are cut
    filled = FillUnlabelledd()(data)
    back = Invertd("pred", read, orig_keys="image", nearest_interp=True)(filled)["pred"]
    expected = np.zeros_like(truth)
    expected[..., [1, 4]] = truth[..., [1, 4]]
    np.testing.assert_array_equal(back.numpy()[0], nib.orientations.apply_orientation(expected, turn))
    np.testing.assert_allclose(back.affine, affine)


def test_voxels_of_255_and_cases_without_a_label_stay_as_predicted():
    pred, label = torch.tensor([[[0, 1], [2, 0]]]), torch.tensor([[[255, 2], [0, 255]]])
    kept = FillUnlabelledd()({"pred": pred, "label": label})
    assert kept["pred"].tolist() == [[[0, 2], [0, 0]]]
    assert FillUnlabelledd()({"pred": pred})["pred"].tolist() == pred.tolist()
    assert FillUnlabelledd()({"pred": pred, "label": None})["pred"].tolist() == pred.tolist()


@pytest.mark.parametrize(("slices", "taken"), [([0], True), ([], False)])
def test_an_image_is_a_slice(slices, taken):
    pred, label = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    data = {"pred": pred, "label": label, "known_slices": torch.tensor(slices, dtype=torch.int64)}
    assert FillUnlabelledd()(data)["pred"].tolist() == (label if taken else pred).tolist()
