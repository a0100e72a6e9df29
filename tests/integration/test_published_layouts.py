"""Bundles of data sets that cannot be had here, on small folders laid out as their downloads."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medsaga.data import training_parts

from .bundles import ROOT, SMALL, config_files, paths, run
from .published_layouts import LAYOUTS, samed_slices

SHORT = {
    **SMALL,
    "train#trainer#max_epochs": 1,
    "val_interval": 1,
    "batch_size": 2,
    "num_slices": 4,
    "train_patients": None,
    "test_patients": 1,
    "val_patients": 1,
    "warmup_steps": 1,
}
TRAINED = {"network_def#encoder": "vit_test", "image_size": 64}


def train_config(bundle: str, overrides: dict) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "train"))
    parser.update(overrides)
    return parser


@pytest.mark.parametrize("bundle", LAYOUTS)
def test_from_the_folder_as_downloaded_to_a_mask(bundle, tmp_path):
    description = json.loads((ROOT / "bundles" / bundle / "dataset.json").read_text())
    folder = tmp_path / description["folder"]
    made = LAYOUTS[bundle](folder)
    overrides = {**SHORT, **paths(bundle, folder, tmp_path)}

    parser = train_config(bundle, overrides)
    cases = parser.get_parsed_content("datalist")
    assert len(cases) == made.cases
    (case,) = (case for case in cases if made.name in str(case["image"]))
    read = parser.get_parsed_content("preprocessing")(case)
    assert read["image"].shape[0] in (1, 3) if description.get("colour") else len(parser["channel_names"])
    assert 0 <= float(read["image"].min()) < float(read["image"].max()) <= 1
    assert np.bincount(np.asarray(read["label"]).astype(int).ravel()).tolist() == made.voxels
    # all of the data set's own split, where it has one
    parts = parser.get_parsed_content("parts")
    assert all(parts["train"]) and sum(map(len, parts.values())) == made.cases

    run("training", bundle, "train", **overrides)
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert last["progress"] == {"epoch": 1, "iteration": 2}

    options = {"dataset_dir": str(made.image), "output_dir": str(tmp_path / "masks")}
    run("evaluating", bundle, "inference", **options, **TRAINED, model_path=overrides["model_path"])
    (mask,) = (p for p in (tmp_path / "masks").iterdir() if p.name != "errors.csv")
    if mask.suffix == ".png":
        assert Image.open(mask).size == Image.open(made.image).size
    elif made.image.suffix == ".npz":
        assert nib.load(mask).shape == np.load(made.image)["imgs"].shape[::-1]
        np.testing.assert_allclose(nib.load(mask).header.get_zooms(), np.load(made.image)["spacing"])
    else:
        assert nib.load(mask).shape == nib.load(made.image).shape
        np.testing.assert_allclose(nib.load(mask).affine, nib.load(made.image).affine, atol=1e-4)


def test_the_sequences_of_a_case_are_found_beside_its_first(tmp_path):
    folder = tmp_path / "BraTS2021_Training_Data"
    LAYOUTS["brain_tumour"](folder)
    parser = ConfigParser()
    parser.read_config(config_files("brain_tumour", "inference"))
    parser.update({"dataset_dir": str(folder), "bundle_root": str(ROOT / "bundles" / "brain_tumour")})
    cases = parser.get_parsed_content("dataset#data")
    assert [case["image"][-18:] for case in cases] == [f"{n:05d}_flair.nii.gz" for n in (0, 2, 3, 5)]
    preprocessing = parser.get_parsed_content("preprocessing")
    alone = preprocessing(cases[0])["image"]
    train = train_config("brain_tumour", paths("brain_tumour", folder, tmp_path))
    listed = train.get_parsed_content("preprocessing")(train.get_parsed_content("datalist")[0])["image"]
    assert alone.shape == (4, 24, 24, 6)
    assert torch.equal(alone.as_tensor(), listed.as_tensor())


def test_synapse_is_split_as_by_samed(tmp_path):
    folder = tmp_path / "RawData"
    LAYOUTS["synapse"](folder)
    parts = train_config("synapse", paths("synapse", folder, tmp_path)).get_parsed_content("parts")
    # SAMed's preprocess_data.py
    test = [1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38]
    assert sorted(int(case["patient"]) for case in parts["test"]) == test
    assert len(parts["train"]) == 18 and parts["validation"] == []


def test_samed_s_own_slices_and_volumes(tmp_path):
    made = samed_slices(tmp_path / "Synapse")
    overrides = {**SHORT, **paths("synapse", tmp_path / "Synapse", tmp_path), "split": None}
    overlay = ROOT / "bundles" / "synapse" / "configs" / "preprocessed.json"
    parser = ConfigParser()
    parser.read_config([*config_files("synapse", "train"), str(overlay)])
    parser.update(overrides)
    cases = parser.get_parsed_content("datalist")
    assert len(cases) == 3 * 4 + 2
    parts = training_parts(cases, None, 1, 1)
    assert {case["patient"] for case in parts["test"]} == {"0001", "0002"}
    read = parser.get_parsed_content("preprocessing")(parts["test"][0])
    for key in ("image", "label"):
        # rows and columns as in the file
        np.testing.assert_allclose(np.moveaxis(np.asarray(read[key][0]), -1, 0), made[key], atol=1e-6)
    run("training", "synapse", "train", "preprocessed", **overrides)
    run("evaluating", "synapse", "train", "preprocessed", "evaluate", **overrides)
    assert (tmp_path / "output" / "evaluation" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    "bundle, method", [("brain_tumour", "unet"), ("brain_tumour", "samed"), ("cvpr24", "lite_lora"), ("fundus", "msa")]
)
def test_other_methods_on_sequences_and_colours(bundle, method, tmp_path):
    folder = tmp_path / "data"
    LAYOUTS[bundle](folder)
    own = {"network_def#features": (8, 8, 8, 8, 8, 8)} if method == "unet" else {}
    overrides = {**SHORT, **own, **paths(bundle, folder, tmp_path)}
    if method == "unet":
        del overrides["network_def#encoder"]
    overlay = f"../../methods/{method}"
    run("training", bundle, "train", overlay, **overrides)
    run("evaluating", bundle, "train", "evaluate", overlay, **overrides)
    assert (tmp_path / "output" / "evaluation" / "metrics.csv").is_file()
