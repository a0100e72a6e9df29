"""What the measurement of waiting times prepares."""

import json

import nibabel as nib
import numpy as np

from medsaga.bundle import find_bundle
from medsaga.experiments.bundle_copy import copy_bundle
from medsaga.experiments.serving import _LITE, _enlarged, _fresh_weights, _median


def test_the_ct_keeps_its_place_when_its_slices_are_enlarged(tmp_path):
    affine = np.array([[3.0, 0, 0, -100], [0, 3, 0, -80], [0, 0, 5, 10], [0, 0, 0, 1]])
    voxels = np.arange(64 * 32 * 3, dtype=np.int16).reshape(64, 32, 3)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "ct.nii.gz")
    large = _enlarged(tmp_path / "ct.nii.gz")
    assert large.shape == (512, 512, 3)
    assert np.asarray(large.dataobj)[8 * 10, 16 * 7, 2] == voxels[10, 7, 2]
    np.testing.assert_allclose((large.affine @ [512, 512, 3, 1])[:3], (affine @ [64, 32, 3, 1])[:3])


def test_a_bundle_with_other_values_and_weights_that_fit(tmp_path):
    small = {**_LITE, "network_def#encoder": "vit_test", "image_size": 64, "weights": None}
    bundle = copy_bundle(find_bundle("spleen"), tmp_path / "spleen", small)
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert (train["image_size"], train["network_def"]["encoder"], train["weights"]) == (64, "vit_test", None)
    _fresh_weights(bundle)
    assert (bundle / "models" / "model.pt").stat().st_size > 0


def test_median_and_longest():
    assert _median([1.0, 2.0, 9.0]) == "2.00 (9.00)"
