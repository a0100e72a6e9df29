"""A bundle of two sequences in the app: given by the first one's file, against its own command."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from fastapi import HTTPException

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.infers import AutomaticTask, PromptedTask
from lib.served_model import ServedModel

from medsaga.networks import SamSegmenter
from medsaga.reading import ReadingError

from ..integration.bundles import run
from ..integration.server import IMAGE_SIZE, small_bundle
from .phantoms import AFFINE

SHAPE = (14, 18, 12)
CHANNELS = {"channel_names": ["FLAIR", "T1c"], "sequences": ["_0000", "_0001"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    bundle = small_bundle(tmp_path_factory.mktemp("bundle"))
    for name in ("train", "inference"):
        path = bundle / "configs" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **CHANNELS}))
    torch.manual_seed(1)
    torch.save(SamSegmenter("vit_test", IMAGE_SIZE, 3, in_channels=2).state_dict(), bundle / "models" / "model.pt")
    return ServedModel(bundle)


@pytest.fixture
def image(tmp_path):
    """The first sequence's file; the second lies beside it, on a grid of its own."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        values = np.random.default_rng(number).integers(100, 900, SHAPE).astype(np.int16)
        affine = AFFINE @ np.diag([1, 1, 1 + 0.1 * number, 1])
        nib.save(nib.Nifti1Image(values, affine), folder / f"case_000{number}.nii.gz")
    return str(folder / "case_0000.nii.gz")


def test_the_automatic_mask_is_the_bundles(model, image, tmp_path):
    written, _ = AutomaticTask(model)({"image": image, "device": "cpu"})
    mask = nib.load(written)
    run(
        "evaluating",
        "hippocampus",
        "inference",
        **CHANNELS,
        **{"network_def#encoder": "vit_test"},
        image_size=IMAGE_SIZE,
        model_path=str(model.path / "models" / "model.pt"),
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "bundle"),
    )
    (expected,) = (tmp_path / "bundle").glob("*_seg.nii.gz")
    values = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(values, np.asarray(nib.load(expected).dataobj))
    assert values.shape == SHAPE and len(np.unique(values)) > 1
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("weights", ["model.pt", "published"])
def test_prompts_are_answered_by_trained_and_by_published_weights(model, image, weights):
    click = [9, 13, 4]
    request = {"image": image, "foreground": [click], "device": "cpu", "model_filename": weights}
    written, params = PromptedTask(model)(request)
    values = np.asarray(nib.load(written).dataobj)
    assert values.shape == SHAPE and values[tuple(click)] == 1 and params["weights"] == weights


def test_what_is_missing_is_named_without_the_servers_folders(model, image, tmp_path):
    (tmp_path / "images" / "case_0001.nii.gz").unlink()
    with pytest.raises(HTTPException) as caught:
        model.prepare(image)
    assert caught.value.status_code == 422
    assert "case_0001.nii.gz: there is no such file" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail


def test_one_file_of_all_sequences_does_for_a_bundle_without_ends_of_names(model, tmp_path):
    shutil.copytree(model.path, tmp_path / "hippocampus")
    path = tmp_path / "hippocampus" / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sequences": None}))
    model = ServedModel(tmp_path / "hippocampus")
    for count in (2, 3):
        values = np.random.default_rng(0).integers(0, 900, (*SHAPE, count)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"all{count}.nii.gz")
    assert model.prepare(str(tmp_path / "all2.nii.gz")).shape[0] == 2
    with pytest.raises(ReadingError, match=r"all3\.nii\.gz: it has 3 channels, but this bundle takes 2 sequences"):
        AutomaticTask(model)({"image": str(tmp_path / "all3.nii.gz"), "device": "cpu"})
