"""Bundles that are trained in seconds, on what was drawn for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ..bundles import ROOT, SMALL, run


def trained_bundle(name: str, folder: Path, dataset_dir: Path, epochs: int) -> Path:
    """A copy of a bundle with the test encoder in its configs, as a site would change them, and weights to serve."""
    shutil.copytree(ROOT / "bundles" / name, folder, ignore=shutil.ignore_patterns("cache", "output", "*.pt"))
    for config in ("train", "inference"):
        path = folder / "configs" / f"{config}.json"
        content = json.loads(path.read_text())
        content["network_def"]["encoder"], content["image_size"] = SMALL["network_def#encoder"], SMALL["image_size"]
        if config == "train":
            content["weights"] = None
        path.write_text(json.dumps(content))
    settings = {
        "train#trainer#max_epochs": epochs,
        "val_interval": epochs,
        "batch_size": 8,
        "test_patients": 1,
        "val_patients": 1,
        "train_patients": None,
        "num_slices": 60,
        "min_classes": 0,
        "warmup_steps": 2,
        "prompt_probability": 0,  # so few steps are for automatic masks; clicks are corrected by the image
        "encoder_lr": 0.002,
        "lr": 0.004,
    }
    run("training", name, "train", **SMALL, **settings, bundle_root=str(folder), dataset_dir=str(dataset_dir))
    return folder


def write_chest_phantoms(folder: Path, cases: int, first_seed: int) -> Path:
    """Drawn radiographs and masks (150, 200, 250 as in SCR) in the layout of the chest_xray bundle's data."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for case in range(cases):
        pixels, label = chest_phantom(first_seed + case)
        Image.fromarray((pixels / 16).clip(0, 255).astype(np.uint8).T).save(folder / "images" / f"{case}.png")
        Image.fromarray(np.array([0, 150, 200, 250], np.uint8)[label].T).save(folder / "masks" / f"{case}.png")
    return folder


def chest_phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn pixels and labels (1, 2 lungs; 3 heart) of a frontal radiograph, 96 columns × 80 rows."""
    random = np.random.RandomState(seed)
    column, row = np.meshgrid(np.arange(96), np.arange(80), indexing="ij")
    label = np.zeros((96, 80), np.uint8)
    shapes = np.array([(28, 38, 14, 28), (70, 40, 14, 26), (52, 50, 11, 15)]) + random.randint(-3, 4, (3, 4))
    for value, (x, y, a, b) in enumerate(shapes, 1):
        label[((column - x) / a) ** 2 + ((row - y) / b) ** 2 < 1] = value
    pixels = np.choose(label, [2600, 900, 1000, 3200]) + random.normal(0, 80, label.shape)
    return np.rint(pixels).astype(int), label
