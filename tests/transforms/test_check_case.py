from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsaga.transforms import CheckCased


def tensor(array, name):
    return MetaTensor(torch.as_tensor(array, dtype=torch.float32), meta={"filename_or_obj": f"/data/{name}.nii.gz"})


def case(image_shape=(1, 6, 5, 4), label_shape=None, label_values=(0, 1, 2)):
    random = np.random.RandomState(0)
    label_shape = label_shape or (1, *image_shape[1:])
    return {
        "image": tensor(random.uniform(size=image_shape), "image"),
        "label": tensor(random.choice(label_values, size=label_shape), "label"),
    }


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (1, 6, 5, 4), (1, 3, 3, 3)])
def test_good_case_passes_unchanged(shape):
    data = {**case(shape), "patient": "p1"}
    out = CheckCased(3)(data)
    assert out.keys() == data.keys()
    assert torch.equal(out["image"], data["image"])
    assert torch.equal(out["label"], data["label"])


def test_image_without_a_label_is_checked_alone():
    image = case()["image"]
    assert CheckCased(3)({"image": image}).keys() == {"image"}
    image[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        CheckCased(3)({"image": image})


def test_keys_can_be_named():
    data = case()
    with pytest.raises(ValueError, match=r"label\.nii\.gz: label values 2 are"):
        CheckCased(2, image_key="scan", label_key="mask")({"scan": data["image"], "mask": data["label"]})


def test_white_is_the_class_where_there_is_one(caplog):
    data = case(label_values=(0, 255))
    out = CheckCased(2)(data)
    assert torch.equal(out["label"], (data["label"] > 0).to(out["label"].dtype))
    assert "label.nii.gz: values 0 and 255 are read as 0 and 1" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_shape": (2, 6, 5, 4), "label_shape": (1, 6, 5, 4)},
            r"image\.nii\.gz: it is a 4-D image with 2 volumes",
        ),
        (
            {"image_shape": (3, 6, 5, 4), "label_shape": (1, 6, 5, 4)},
            r"image\.nii\.gz: it is a 4-D image with 3 volumes",
        ),
        ({"image_shape": (1, 6, 5, 4, 2)}, r"image\.nii\.gz: it has 4 axes"),
        ({"image_shape": (1, 6)}, r"image\.nii\.gz: it has 1 axes"),
        ({"image_shape": (2, 6, 5)}, r"image\.nii\.gz: it has 2 channels"),
        ({"image_shape": (4, 6, 5)}, r"image\.nii\.gz: it has 4 channels"),
        (
            {"label_shape": (1, 6, 5, 3)},
            r"label\.nii\.gz: the label has shape \(6, 5, 3\).*image\.nii\.gz.*\(6, 5, 4\)",
        ),
        ({"label_shape": (2, 6, 5, 4)}, r"label\.nii\.gz: the label has 2 channels"),
        ({"label_shape": (3, 6, 5, 4)}, r"label\.nii\.gz: the label has 3 channels"),  # coloured: they differ
        ({"label_values": (0, 3)}, r"label\.nii\.gz: label values 3 are.*3 classes \(0 = background to 2\)"),
        ({"label_values": (0, 255)}, r"label\.nii\.gz: label values 255 are"),
        ({"label_values": (-1, 1)}, r"label\.nii\.gz: label values -1 are.*negative"),
        ({"label_values": (0.5, 1)}, r"label\.nii\.gz: values such as 0\.5"),
        ({"label_values": (np.nan, 1)}, r"label\.nii\.gz: it has NaN"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_by_file(options, message):
    with pytest.raises(ValueError, match=message):
        CheckCased(3)(case(**options))


@pytest.mark.parametrize(
    ("value", "count", "message"),
    [(np.nan, 1, "1 of 120 values are NaN"), (-np.inf, 2, "2 of 120 values"), (4.0, 120, "every value is 4")],
)
def test_values_without_information_are_refused(value, count, message):
    data = case()
    data["image"].view(-1)[:count] = value
    with pytest.raises(ValueError, match=rf"image\.nii\.gz: {message}"):
        CheckCased(3)(data)


def test_without_a_file_name_the_key_is_named():
    with pytest.raises(ValueError, match="image: every value is 0"):
        CheckCased(3)({"image": torch.zeros(1, 4, 4)})


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, False),
        ({(0, 3): 0.2}, False),  # half a voxel is rounding in headers
        ({(0, 3): 1.5}, True),
        ({(0, 0): -1.0}, True),
        ({(2, 2): 3.1}, True),
    ],
)
def test_a_label_that_lies_elsewhere_is_refused(change, refused):
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    moved = affine.clone()
    for place, value in change.items():
        moved[place] = value
    image = MetaTensor(torch.rand(1, 8, 9, 40), affine=affine)
    label = MetaTensor(torch.zeros(1, 8, 9, 40), affine=moved)
    if not refused:
        CheckCased(2)({"image": image, "label": label})
        return
    with pytest.raises(ValueError, match="voxels away from its image"):
        CheckCased(2)({"image": image, "label": label})


@pytest.mark.parametrize("num_classes", [2, 3])
def test_values_of_255_beside_a_class_are_not_labelled_and_stay(num_classes, caplog):
    data = case(label_values=(0, 1, 255))
    out = CheckCased(num_classes)(data)
    assert torch.equal(out["label"], data["label"]) and not caplog.text


@pytest.mark.parametrize("num_classes", [2, 3])
def test_slices_of_255_alone_are_not_labelled(num_classes):
    data = case(label_values=(0,))
    data["label"][..., [0, 3]] = 255
    assert torch.equal(CheckCased(num_classes)(data)["label"], data["label"])
