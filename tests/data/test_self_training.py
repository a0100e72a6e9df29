"""Cases that a teacher labels, and the slices that keep a person's label."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, MapLabelValued, ScaleIntensityRangePercentilesd
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from medsaga.data import (
    SliceDataset,
    WithTeacherLabels,
    cases_to_label,
    teacher_file,
    teacher_labelled,
    without_label_values,
)
from medsaga.transforms import FillUnlabelledd, OrientSlicesd, ReadImaged

SHAPE = (12, 14, 10)  # left-right, front-back, up-down


def preprocessing(plane: str) -> Compose:
    keys = ["image", "label"]
    steps = [ReadImaged(keys), OrientSlicesd(keys, plane=plane), ScaleIntensityRangePercentilesd("image", 0, 100, 0, 1)]
    return Compose(steps)


@pytest.fixture(params=["RAS", "LPS", "SRA", "IPL"])
def case(request, tmp_path):
    """A volume as scanners store it, with random labels."""
    label = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(request.param))
    affine = np.diag([1, 1.5, 2, 1]) @ inv_ornt_aff(turn, SHAPE)
    files = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")}
    for path in files.values():
        nib.save(nib.Nifti1Image(nib.orientations.apply_orientation(label, turn), affine), path)
    return {**files, "patient": "a"}


@pytest.mark.parametrize("plane", ["auto", "all", "axial", "sagittal"])
def test_the_slices_that_are_trained_on_keep_their_label(case, plane, tmp_path):
    prepare = preprocessing(plane)
    dataset = SliceDataset([case], prepare, 3, tmp_path / "cache", num_slices=3, seed=1, plane=plane)
    (to_label,) = cases_to_label(dataset, [{"image": case["image"]}])
    assert "plane" not in to_label and to_label["known_slices"].tolist() == dataset.shown_slices()[0]
    data = prepare({key: to_label[key] for key in ("image", "label")})
    shape = data["label"].shape
    data |= {"pred": torch.full(shape, 7), "known_slices": to_label["known_slices"]}
    filled = FillUnlabelledd()(data)["pred"]
    for position in range(shape[-1]):
        of_person = dataset.cases[0].read(position)["label"]
        known = position in to_label["known_slices"]
        assert torch.equal(filled[..., position].to(torch.uint8), of_person if known else torch.full_like(of_person, 7))


def test_cases_without_labels_are_added_and_get_the_teachers(tmp_path):
    label = np.ones(SHAPE, np.uint8)
    for name in ("one", "two"):
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / f"{name}.nii.gz")
    one = {"image": str(tmp_path / "one.nii.gz"), "label": str(tmp_path / "one.nii.gz"), "patient": "p"}
    two = {"image": str(tmp_path / "two.nii.gz"), "name": "second"}
    dataset = SliceDataset([one], preprocessing("axial"), 3, tmp_path / "cache")
    cases = cases_to_label(dataset, [{"image": one["image"]}, two])
    assert [case["image"] for case in cases] == [one["image"], two["image"]]
    assert teacher_labelled(cases, tmp_path / "by", ".png") == [
        {"image": one["image"], "patient": "p", "label": str(tmp_path / "by" / "one_seg.png")},
        {"image": two["image"], "name": "second", "label": str(tmp_path / "by" / "second_seg.png")},
    ]


def test_labels_of_a_teacher_are_class_numbers_already():
    given = Compose([MapLabelValued("label", [0, 150], [0, 1]), ScaleIntensityRangePercentilesd("image", 0, 100, 0, 1)])
    assert [type(one) for one in without_label_values(given).transforms] == [ScaleIntensityRangePercentilesd]
    assert len(given.transforms) == 2, "the data set's own labels are mapped as before"


class Named(list):
    """Slices that say which they are."""

    def __getitem__(self, item):
        return super().__getitem__(item[1]), item[0]


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_a_share_of_the_slices_is_the_teachers(share, least, most):
    labelled, taught = Named(["person"] * 200), Named([f"teacher {i}" for i in range(50)])
    dataset = WithTeacherLabels(labelled, taught, share, seed=3)
    assert len(dataset) == 200
    epochs = [[dataset[epoch, index] for index in range(200)] for epoch in (0, 1)]
    assert all(least <= sum(name != "person" for name, _ in epoch) <= most for epoch in epochs)
    assert all(number == epoch for epoch in (0, 1) for _, number in epochs[epoch]), "for the augmentation"
    assert epochs[0] == [WithTeacherLabels(labelled, taught, share, seed=3)[0, index] for index in range(200)]
    names = [[name for name, _ in epoch] for epoch in epochs]
    assert share == 0 or names[0] != names[1], "another draw in each epoch"


def test_what_is_no_file_or_share_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--teacher bundles/NAME/models/model.pt"):
        teacher_file(tmp_path / "no.pt")
    with pytest.raises(ValueError, match="from 0 to 1, got 1.5"):
        WithTeacherLabels(Named(), Named(), 1.5)
