"""A whole bundle of this package with a small network, and one as others write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from medsaga.networks import SamSegmenter

ROOT = Path(__file__).parents[2]
SIZE = 64


def edit(path, change):
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def small(folder):
    """The hippocampus bundle as a site would make it small: all its files agree."""
    shutil.copytree(
        ROOT / "bundles" / "hippocampus", folder, ignore=shutil.ignore_patterns("cache", "output", "models")
    )
    for name in ("train", "inference"):

        def change(config):
            config["image_size"] = SIZE
            config["network_def"]["encoder"] = "vit_test"

        edit(folder / "configs" / f"{name}.json", change)

    def shapes(metadata):
        formats = metadata["network_data_format"]
        formats["inputs"]["image"]["spatial_shape"] = [SIZE, SIZE]
        formats["outputs"]["pred"]["spatial_shape"] = [SIZE // 4, SIZE // 4]

    edit(folder / "configs" / "metadata.json", shapes)
    edit(folder / "dataset.json", lambda dataset: dataset.update(image_size=SIZE))
    return folder


def weights(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SamSegmenter("vit_test", image_size=SIZE, num_classes=3).state_dict()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Nothing is wrong with it; to be copied by who changes it."""
    folder = small(tmp_path_factory.mktemp("whole") / "hippocampus")
    (folder / "models").mkdir()
    torch.save(weights(), folder / "models" / "model.pt")
    return folder


@pytest.fixture
def bundle(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "hippocampus")
    return tmp_path / "hippocampus"


@pytest.fixture
def foreign(tmp_path):
    """A bundle of a network of MONAI's, without anything of this package."""
    folder = tmp_path / "unet_segmentation"
    network = {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    }
    config = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "dataset_dir": "/workspace/data",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "dataset": {"_target_": "Dataset", "data": []},
        "inferer": {"_target_": "SimpleInferer"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
        },
        "run": ["$@evaluator.run()"],
    }
    channel = {"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": ["8*n", "8*n", 16]}
    channel |= {"dtype": "float32", "value_range": [], "is_patch_data": True, "channel_def": {"0": "image"}}
    labels = {**channel, "format": "segmentation", "num_channels": 2, "channel_def": {"0": "background", "1": "liver"}}
    metadata = {
        "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "first"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.14.1",
        "numpy_version": "1.26.4",
        "required_packages_version": {},
        "task": "Segmentation",
        "description": "x",
        "authors": "x",
        "copyright": "x",
        "network_data_format": {"inputs": {"image": channel}, "outputs": {"pred": labels}},
    }
    for name, content in {"inference": config, "metadata": metadata}.items():
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text("# x\n")
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    return folder
