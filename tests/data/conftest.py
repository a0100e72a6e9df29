"""Cases on disk whose slices are known without reading them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, ScaleIntensityRangePercentilesd

from medsaga.data import decathlon_datalist, write_decathlon_phantoms
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged


def _preprocessing(num_classes: int = 3, lower: float = 0.5, extra: tuple = ()) -> Compose:
    keys = ["image", "label"]
    return Compose(
        [
            ReadImaged(keys),
            OrientSlicesd(keys, plane="axial"),
            *extra,
            CheckCased(num_classes),
            ScaleIntensityRangePercentilesd("image", lower, 99.5, 0.0, 1.0, clip=True),
        ]
    )


@pytest.fixture(scope="session")
def preprocessing() -> Callable[..., Compose]:
    """Makes the preprocessing of the bundles."""
    return _preprocessing


def _write_nifti(path: Path, slices: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    # (slice, row, column) towards S, P and L → (R, A, S) world axes
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine), path)
    return str(path)


@pytest.fixture(scope="session")
def write_nifti() -> Callable[..., str]:
    """Writes (slice, row, column), an axial volume seen from the feet, as NIfTI."""
    return _write_nifti


@pytest.fixture
def write_case(tmp_path, write_nifti) -> Callable[..., dict]:
    """Writes a good case of random content under a name."""

    def write(name: str, seed: int = 0, shape: tuple[int, int, int] = (5, 7, 6)) -> dict:
        random = np.random.RandomState(seed)
        image = random.uniform(-300, 900, shape).astype(np.float32)
        label = random.randint(0, 3, shape).astype(np.uint8)
        return {
            "image": write_nifti(tmp_path / "images" / f"{name}.nii.gz", image),
            "label": write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label),
        }

    return write


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> list[dict]:
    """Three small phantoms."""
    return decathlon_datalist(write_decathlon_phantoms(tmp_path_factory.mktemp("phantoms"), 3, (10, 12, 9)))
