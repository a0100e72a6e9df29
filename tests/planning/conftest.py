"""Small data sets on disk whose content is known because it was drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsaga.planning import machine

from ..once import once

_PLACES = ("bundle_root", "dataset_dir")  # keys of a config that say nothing of its memory


@pytest.fixture(scope="session", autouse=True)
def predicted_once():
    """A prediction takes seconds, and most tests plan the same training of data at another place."""

    def key(setup, device):
        config = json.loads((Path(setup.bundle) / "configs" / "train.json").read_text())
        return json.dumps([device, {name: value for name, value in config.items() if name not in _PLACES}])

    with once(machine, "predict", key):
        yield


def _write_volume(path: Path, slices: np.ndarray, spacing: tuple[float, float, float]) -> str:
    """Axial slices (slice, row, column) as NIfTI; spacing of columns, rows and slices in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine), path)
    return str(path)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> Path:
    """Six CT volumes in the Decathlon's layout: 12 slices of 40 rows, 30 columns, 0.8 mm, 4 mm apart.

    Air (-1000) around soft tissue (40); a box of class 1 (100 HU, rows 10 to 19, columns 5 to 9, slices 2 to 7) and one
    of class 2 (150 HU, rows 10 to 19, columns 20 to 24, slices 2 to 4). Case 5 has no class 2.
    """
    folder = tmp_path_factory.mktemp("volumes")
    training = []
    for case in range(6):
        image = np.full((12, 40, 30), -1000, np.int16)
        image[:, 4:36, 2:28] = 40
        label = np.zeros(image.shape, np.uint8)
        label[2:8, 10:20, 5:10] = 1
        image[label == 1] = 100
        if case < 5:
            label[2:5, 10:20, 20:25] = 2
            image[label == 2] = 150
        name = f"ct_{case}.nii.gz"
        _write_volume(folder / "imagesTr" / name, image, (0.8, 0.8, 4.0))
        _write_volume(folder / "labelsTr" / name, label, (0.8, 0.8, 4.0))
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Boxes",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "first box", "2": "second box"},
        "licence": "none",
        "training": training,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def write_pictures() -> Callable[..., Path]:
    """Writes grey pictures of 48 × 64 with a bright square of 12 × 12, and masks of white or another value."""

    def write(folder: Path, cases: int = 6, value: int = 255) -> Path:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        random = np.random.RandomState(0)
        for case in range(cases):
            picture = random.randint(20, 60, (48, 64)).astype(np.uint8)
            mask = np.zeros_like(picture)
            left = 4 + (case % 2) * 40  # left and right in turn
            mask[18:30, left : left + 12] = value
            picture[mask > 0] += 150
            Image.fromarray(picture).save(folder / "images" / f"p{case}.png")
            Image.fromarray(mask).save(folder / "masks" / f"p{case}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, write_pictures) -> Path:
    """Six pictures with masks."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))
