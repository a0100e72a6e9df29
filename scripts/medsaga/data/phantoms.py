"""Generated volumes with known labels, for tests and for a demonstration where no data can be had."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["write_decathlon_phantoms"]


def _phantom(shape: tuple[int, int, int], random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """One image (float32) and its label (uint8): a bent two-part body, 1 in front and 2 behind, in textured tissue."""
    unit = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    # a smooth random deformation gives every case its own anatomy
    shift = np.stack([gaussian_filter(random.standard_normal(shape), 6) for _ in range(3)])
    shift *= 0.12 / max(np.abs(shift).max(), 1e-6)
    x, y, z = unit + shift
    x = x - 0.25 * y**2 + random.uniform(-0.1, 0.1)
    radius = 0.28 + 0.08 * y + random.uniform(-0.03, 0.03)
    body = (x**2 + (z / 1.2) ** 2 < radius**2) & (np.abs(y) < 0.75)
    label = np.where(body, np.where(y > random.uniform(0.05, 0.2), 1, 2), 0).astype(np.uint8)
    tissue = gaussian_filter(random.standard_normal(shape), 3)
    tissue *= 0.15 / tissue.std()
    contrast = np.choose(label, [0.0, 0.55, 0.4])
    image = 1.0 + tissue + gaussian_filter(contrast, 0.7) + 0.08 * random.standard_normal(shape)
    # a scanner's scale is arbitrary: preprocessing must not rely on it
    return (image * random.uniform(50, 5000)).astype(np.float32), label


def write_decathlon_phantoms(
    folder: str | Path, cases: int = 40, shape: tuple[int, int, int] = (35, 50, 35), seed: int = 0
) -> Path:
    """Write phantoms in the layout of MSD Task04_Hippocampus: anterior (1) and posterior (2) part of a bent body.

    Args:
        folder: made if need be; existing phantoms are written over.
        cases: number of volumes, each a patient.
        shape: voxels of 1 mm in R, A, S; varied a little from case to case.
        seed: of everything random.

    Returns:
        the folder, with ``dataset.json``, ``imagesTr`` and ``labelsTr``.
    """
    folder = Path(folder)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)
    training = []
    for case in range(cases):
        size = tuple(int(n + random.randint(-2, 3)) for n in shape)
        image, label = _phantom(size, random)
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = random.uniform(-20, 20, 3)
        name = f"phantom_{case:03d}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / name)
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Phantoms",
        "description": "Generated volumes, no patient's data",
        "tensorImageSize": "3D",
        "modality": {"0": "phantom"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": cases,
        "numTest": 0,
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))
    return folder
