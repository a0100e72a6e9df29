"""A folder store of two bundles with one image."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.served_model import ServedModel
from lib.stores import FolderStore

from ..integration.bundles import ROOT
from .phantoms import AFFINE, SHAPE


@pytest.fixture(scope="module")
def models():
    """hippocampus: 3-D with 1 anterior, 2 posterior; chest_xray: 2-D with 3 classes."""
    return {name: ServedModel(ROOT / "bundles" / name) for name in ("hippocampus", "chest_xray")}


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume.nii.gz"
    values = np.random.RandomState(0).rand(*SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


@pytest.fixture
def store(tmp_path, models, volume):
    store = FolderStore(str(tmp_path / "studies"), models=models)
    store.add_image("case", str(volume), {})
    return store
