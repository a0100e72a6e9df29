"""A trained bundle with a small network, and cases of the challenge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medsaga.networks import SamSegmenter


@pytest.fixture(scope="session")
def network():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", image_size=64, num_classes=3).eval()
    with torch.no_grad():
        for mlp in network.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(20)
        for block in network.image_encoder.blocks:  # which start at 0
            block.attn.rel_pos_h.normal_()
            block.attn.rel_pos_w.normal_()
    return network


@pytest.fixture
def bundle(network, tmp_path):
    """The hippocampus bundle with a small network, trained as it were."""
    root = tmp_path / "bundles" / "small"
    shutil.copytree(Path(__file__).parents[2] / "bundles" / "hippocampus" / "configs", root / "configs")
    config = json.loads((root / "configs" / "inference.json").read_text())
    config["image_size"] = 64
    config["network_def"]["encoder"] = "vit_test"
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture
def challenge_cases(tmp_path):
    """Folder with a volume and an RGB image."""
    random = np.random.RandomState(0)
    cases = tmp_path / "cases"
    (cases / "more").mkdir(parents=True)
    np.savez(
        cases / "more" / "3DBox_CT_1.npz",
        imgs=random.randint(0, 255, (3, 30, 40)).astype(np.uint8),
        boxes=np.array([[2, 3, 0, 20, 25, 1]]),
        spacing=np.ones(3),
    )
    np.savez(
        cases / "2DBox_US_1.npz",
        imgs=random.randint(0, 255, (30, 40, 3)).astype(np.uint8),
        boxes=np.array([[2, 3, 20, 25], [10, 10, 39, 29]]),
    )
    return cases
