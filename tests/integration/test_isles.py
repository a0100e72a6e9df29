"""The ISLES bundle on a real case, in the challenge's BIDS layout."""

import csv
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from .bundles import SMALL, config_files, fails, paths, run

SHORT = {
    "train#trainer#max_epochs": 1,
    "test_patients": 1,
    "val_patients": 1,
    "num_slices": 4,
    "batch_size": 2,
    "warmup_steps": 1,
}


@pytest.fixture(scope="session")
def case(sample_data):
    """The real case's image and mask."""
    root = sample_data / "ISLES2022"
    images = sorted(root.glob("sub-*/ses-*/dwi/*_dwi.nii.gz"))
    if not images:
        pytest.skip(f"No case of ISLES 2022 in {root}")
    session = images[0].parents[1].relative_to(root)
    return images[0], root / "derivatives" / session / images[0].name.replace("_dwi", "_msk")


@pytest.fixture
def isles(case, tmp_path):
    """A data set of four subjects: the case as it is, and three cuts of it with lesion."""
    folder = tmp_path / "ISLES-2022"
    image, mask = (nib.load(path) for path in case)
    slices = np.flatnonzero(np.asarray(mask.dataobj).any(axis=(0, 1)))
    for i, cut in enumerate([None, slice(slices[0], slices[0] + 8), slice(slices[5], slices[5] + 6), slice(30, 45)]):
        name = f"sub-strokecase{i + 1:04d}"
        for part, suffix, source in ((folder, "dwi", image), (folder / "derivatives", "msk", mask)):
            session = part / name / "ses-0001"
            path = session / ("dwi" if suffix == "dwi" else "") / f"{name}_ses-0001_{suffix}.nii.gz"
            path.parent.mkdir(parents=True)
            if cut is None:
                shutil.copy(case[suffix == "msk"], path)
            else:
                nib.save(source.slicer[:, :, cut], path)
    return folder


def dwi(folder, number):
    name = f"sub-strokecase{number:04d}"
    return folder / name / "ses-0001" / "dwi" / f"{name}_ses-0001_dwi.nii.gz"


def assert_overlays(mask_path, image_path) -> None:
    mask, image = nib.load(mask_path), nib.load(image_path)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


def test_training_slices_are_those_with_lesion_in_their_own_pixels(case, tmp_path):
    parser = ConfigParser()
    parser.read_config(config_files("isles", "train"))
    # the folder as it is
    overrides = {**paths("isles", case[0].parents[3], tmp_path), "num_slices": None, "parts": {"train": "@datalist"}}
    parser.update(overrides)
    dataset = parser.get_parsed_content("train#dataset")
    number = [c["image"] for c in parser.get_parsed_content("datalist")].index(str(case[0]))
    mask = np.asarray(nib.load(case[1]).dataobj)
    lesion = np.flatnonzero(mask.any(axis=(0, 1)))
    assert [z for i, z in dataset.slices if i == number] == lesion.tolist()
    slices = [dataset.cases[number].read(z) for z in lesion]
    fit = parser.get_parsed_content("train#preprocessing").transforms[0]
    for slice_ in slices:
        assert slice_["image"].shape == (1, 112, 112)
        assert torch.equal(fit(slice_)["image"], slice_["image"])
    assert sum(int(s["label"].sum()) for s in slices) == int(mask.sum())
    # lesions are bright: most of them has to stay below the upper end, and above the brain around it
    inside = torch.cat([s["image"][s["label"] > 0] for s in slices])
    assert float((inside == 1).float().mean()) < 0.3
    brain = torch.cat([s["image"][(s["label"] == 0) & (s["image"] > 0.1)] for s in slices])
    assert float(inside.median()) > 1.4 * float(brain.median())


def test_two_iterations_of_the_bundles_own_network(isles, tmp_path):
    overrides = {**SHORT, **paths("isles", isles, tmp_path), "val_interval": 5, "num_slices": 2, "batch_size": 1}
    run("training", "isles", "train", **overrides)
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert last["progress"] == {"epoch": 1, "iteration": 2}
    image = dwi(isles, 3)
    options = {"dataset_dir": str(image), "output_dir": str(tmp_path), "model_path": overrides["model_path"]}
    run("evaluating", "isles", "inference", **options)
    assert_overlays(tmp_path / image.name.replace("_dwi", "_dwi_seg"), image)


def test_a_full_run_with_a_small_encoder(isles, tmp_path):
    overrides = {**SMALL, **SHORT, **paths("isles", isles, tmp_path), "train#trainer#max_epochs": 2}
    run("training", "isles", "train", **overrides, val_interval=1)
    run("evaluating", "isles", "train", "evaluate", **overrides)
    rows = list(csv.DictReader((tmp_path / "output" / "evaluation" / "metrics.csv").open()))
    assert [row["class"] for row in rows] == ["stroke lesion"]
    image = dwi(isles, 1)
    options = {"dataset_dir": str(image), "output_dir": str(tmp_path), "model_path": overrides["model_path"]}
    run("evaluating", "isles", "inference", **options, image_size=64, **{"network_def#encoder": "vit_test"})
    assert_overlays(tmp_path / image.name.replace("_dwi", "_dwi_seg"), image)


def test_a_mask_on_another_grid_is_named_with_its_image(isles, tmp_path):
    image = dwi(isles, 2)
    mask_path = isles / "derivatives" / image.relative_to(isles).parents[1] / image.name.replace("_dwi", "_msk")
    mask = nib.load(mask_path)
    values = np.asarray(mask.dataobj)
    shifted = mask.affine.copy()
    shifted[:3, 3] += [0, 0, 6]
    every_patient = {"parts": {"train": "@datalist", "validation": [], "test": []}}
    overrides = {**SMALL, **SHORT, **paths("isles", isles, tmp_path), **every_patient}
    for changed, reason in (
        (nib.Nifti1Image(values[:, :, :-1], mask.affine), "they must be equal"),
        (nib.Nifti1Image(values, shifted), "voxels away from its image"),
    ):
        nib.save(changed, mask_path)
        message = fails("training", "isles", "train", **overrides)
        assert "1 of 4 cases cannot be used" in message
        assert str(mask_path) in message and str(image) in message and reason in message
