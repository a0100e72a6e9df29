"""The spleen bundle on a real CT, laid out as MSD Task09_Spleen."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from .bundles import SMALL, paths, run

SHORT = {"train#trainer#max_epochs": 1, "test_patients": 1, "val_patients": 1, "train_patients": 2, "num_workers": 0}


@pytest.fixture(scope="module")
def task09(sample_data, tmp_path_factory):
    """A Task09 folder of four cases: the example CT and three cuts of it, label 1 the spleen."""
    source = sample_data / "TotalSegmentator_example"
    volumes = sorted(source.rglob("*.nii*"))
    label_path = next(p for p in volumes if "label" in str(p.relative_to(source)).lower() or "seg" in p.name.lower())
    image_path = next(p for p in volumes if p != label_path)
    folder = tmp_path_factory.mktemp("Task09_Spleen")
    image, label = nib.load(image_path), nib.load(label_path)
    spleen = (np.asarray(label.dataobj) == 1).astype(np.uint8)
    z = np.flatnonzero(spleen.any(axis=(0, 1)))
    cuts = [slice(None), slice(z[0], z[-1]), slice(z[0] + 2, z[0] + 4), slice(z[-1] - 10, z[-1] + 1)]
    training = []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for i, cut in enumerate(cuts):
        name = f"spleen_{i}.nii.gz"
        nib.save(image.slicer[:, :, cut], folder / "imagesTr" / name)
        nib.save(nib.Nifti1Image(spleen[:, :, cut], image.slicer[:, :, cut].affine), folder / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {"labels": {"0": "background", "1": "spleen"}, "modality": {"0": "CT"}, "training": training, "test": []}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def assert_overlays(mask_path, image_path) -> None:
    mask, image = nib.load(mask_path), nib.load(image_path)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


def test_two_iterations_of_vit_b_at_512(task09, tmp_path):
    # SAM's weights cannot be had offline: the network is the real one, with fresh weights
    overrides = {**SHORT, **paths("spleen", task09, tmp_path), "weights": None}
    options = {"batch_size": 1, "num_slices": 2, "min_classes": 1, "val_interval": 5}
    run("training", "spleen", "train", **overrides, **options)
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert last["progress"] == {"epoch": 1, "iteration": 2}
    assert last["network"]["image_encoder.pos_embed"].shape == (1, 32, 32, 768)
    image = task09 / "imagesTr" / "spleen_2.nii.gz"
    options = {"dataset_dir": str(image), "output_dir": str(tmp_path), "model_path": overrides["model_path"]}
    run("evaluating", "spleen", "inference", **options)
    assert_overlays(tmp_path / "spleen_2_seg.nii.gz", image)


def test_a_full_run_with_a_small_encoder(task09, tmp_path):
    overrides = {**SHORT, **SMALL, **paths("spleen", task09, tmp_path), "train#trainer#max_epochs": 3, "batch_size": 8}
    run("training", "spleen", "train", **overrides, val_interval=1, num_slices=24, min_classes=1, warmup_steps=2)
    run("evaluating", "spleen", "train", "evaluate", **overrides)
    rows = list(csv.DictReader((tmp_path / "output" / "evaluation" / "metrics.csv").open()))
    assert len(rows) == 1
    assert rows[0]["class"] == "spleen"
    image = task09 / "imagesTr" / "spleen_0.nii.gz"
    options = {"dataset_dir": str(image), "output_dir": str(tmp_path), "model_path": overrides["model_path"]}
    run("evaluating", "spleen", "inference", **options, image_size=64, **{"network_def#encoder": "vit_test"})
    assert_overlays(tmp_path / "spleen_0_seg.nii.gz", image)
