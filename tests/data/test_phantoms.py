from __future__ import annotations

import nibabel as nib
import numpy as np

from medsaga.data import decathlon_datalist, write_decathlon_phantoms


def load(case):
    return [np.asarray(nib.load(case[key]).dataobj) for key in ("image", "label")]


def test_phantoms_are_a_decathlon_folder_of_labelled_volumes(tmp_path):
    datalist = decathlon_datalist(write_decathlon_phantoms(tmp_path, cases=3, shape=(16, 20, 14)))
    assert len(datalist) == 3
    scales = []
    for case in datalist:
        image, label = load(case)
        assert image.shape == label.shape
        assert np.abs(np.subtract(image.shape, (16, 20, 14))).max() <= 2
        assert np.unique(label).tolist() == [0, 1, 2]
        assert np.isfinite(image).all()
        # anterior in front of posterior, and both brighter than what is around them
        assert np.argwhere(label == 1)[:, 1].mean() > np.argwhere(label == 2)[:, 1].mean()
        assert min(image[label == 1].mean(), image[label == 2].mean()) > image[label == 0].mean()
        assert np.array_equal(nib.load(case["image"]).affine, nib.load(case["label"]).affine)
        scales.append(image.mean())
    assert max(scales) > 1.2 * min(scales)


def test_phantoms_are_a_function_of_the_seed(tmp_path):
    first, same, other = (
        load(decathlon_datalist(write_decathlon_phantoms(tmp_path / str(i), 1, (9, 9, 9), seed=seed))[0])[0]
        for i, seed in enumerate((3, 3, 4))
    )
    assert np.array_equal(first, same)
    assert first.shape != other.shape or not np.allclose(first, other)
