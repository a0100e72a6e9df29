"""Boxes together and one by one, and a challenge case made of a volume with labels."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from medsaga.data import read_challenge_case
from medsaga.experiments import boxes


@pytest.fixture
def ct(tmp_path):
    """A volume that is neither isotropic nor in the order that the challenge has, with three blocks."""
    label = np.zeros((24, 20, 6), np.uint8)
    label[2:10, 3:9, 1:4] = 7
    label[12:22, 5:17, 2:5] = 5
    label[3:8, 12:18, 2:3] = 9
    image = np.where(label > 0, 100, -100).astype(np.float32)
    affine = np.diag([-2.0, 3.0, 5.0, 1.0])
    paths = tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz"
    for array, path in zip((image, label), paths):
        nib.save(nib.Nifti1Image(array, affine), path)
    return paths


def test_a_case_has_each_object_in_its_box(ct, tmp_path):
    image, label = boxes.load_ct(*ct)
    boxes.write_case(image, label, [5, 7], tmp_path / "3DBox_CT_1.npz")
    case = read_challenge_case(tmp_path / "3DBox_CT_1.npz")
    assert tuple(case["image"].shape) == (1, 20, 24, 6) and case["modality"] == "CT"
    assert np.load(tmp_path / "3DBox_CT_1.npz")["spacing"].tolist() == [2, 3, 5]
    for number, (x0, y0, z0, x1, y1, z1) in enumerate(case["boxes"].int().tolist(), start=1):
        inside = torch.zeros(case["label"].shape[1:], dtype=torch.bool)
        inside[y0 : y1 + 1, x0 : x1 + 1, z0 : z1 + 1] = True
        assert torch.equal(torch.as_tensor(case["label"])[0] == number, inside), "blocks fill their boxes"


def test_a_perfect_result_scores_1_and_a_shifted_one_by_hand(ct, tmp_path):
    path = tmp_path / "3DBox_CT_1.npz"
    boxes.write_case(*boxes.load_ct(*ct), [5, 7], path)
    truth = np.load(path)["gts"]
    np.savez(tmp_path / "same.npz", segs=truth)
    assert boxes.scores(path, tmp_path / "same.npz") == [(1, 1), (1, 1)]
    # by one column of 2 mm: within the tolerance
    np.savez(tmp_path / "shifted.npz", segs=np.roll(truth, 1, axis=2))
    (dice5, surface5), (dice7, surface7) = boxes.scores(path, tmp_path / "shifted.npz")
    assert (dice5, dice7) == pytest.approx((9 / 10, 7 / 8)) and surface5 == surface7 == 1


def test_the_slice_with_most_objects_and_its_largest_boxes(ct):
    index, found = boxes.slice_boxes(boxes.load_ct(*ct)[1], 2)
    assert index == 2 and found.shape == (2, 4)
    sides = (found[:, 2:] - found[:, :2] + 1).tolist()
    assert sides == [[10, 12], [8, 6]]


def test_the_command(ct, tmp_path, capsys):
    words = ["--ct", str(ct[0]), "--labels", str(ct[1]), "--objects", "5=liver", "7=pancreas", "--repeats", "1"]
    boxes.main([*words, "--output", str(tmp_path / "boxes.json")])
    printed = capsys.readouterr().out
    assert "| 3 boxes of a slice, together |" in printed and "| pancreas: Dice, surface Dice at 2 mm |" in printed
    content = json.loads((tmp_path / "boxes.json").read_text())
    # bright blocks on a dark ground
    assert min(dice for dice, _ in content["case"]["scores"]) > 0.8
    assert content["embedding"] > 0 and content["one by one"] > 0 and content["together"] > 0
