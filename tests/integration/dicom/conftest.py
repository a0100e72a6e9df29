"""A DICOM store with phantoms in it, on a network of its own."""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from medsaga.data import write_decathlon_phantoms

from ..bundles import ROOT
from .network import loopback_only
from .series import Series, oblique_affine, write_volume, write_xray
from .services import ORTHANC_PLUGINS, STORE, monai_label, orthanc, upload
from .small import chest_phantom, trained_bundle, write_chest_phantoms

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")


@dataclass
class Case:
    """A series and what is in it.

    Args:
        series: in the store.
        label: on the series' voxels, 0 to the number of classes.
    """

    series: Series
    label: np.ndarray


@pytest.fixture(scope="package")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("dicom")


@pytest.fixture(scope="package")
def store(work):
    """DICOMweb root of an empty Orthanc."""
    plugin = ORTHANC_PLUGINS / "libOrthancDicomWeb.so"
    if not (shutil.which("Orthanc") and shutil.which("ip") and plugin.is_file()):
        pytest.skip("Orthanc with DICOMweb, or ip, is not installed: .ci/install-viewers installs them")
    try:
        with loopback_only(), orthanc(work / "orthanc") as root:
            yield root
    except PermissionError as e:
        pytest.skip(f"No network namespace can be made ({e}): run as root or inside unshare -rn")


@pytest.fixture(scope="package")
def volumes(work) -> Path:
    """Phantoms in the layout of Task04_Hippocampus, large enough to be looked at."""
    return write_decathlon_phantoms(work / "volumes", cases=12, shape=(56, 72, 28), seed=1)


@pytest.fixture(scope="package")
def cases(store, work, volumes) -> dict[str, Case]:
    """Phantoms as a hospital's archive would hold them; what they show is known because they were drawn."""
    made = {}
    affines = {
        "mr": oblique_affine((0.9, 1.1, 2.0), (40, 60, -30), flip=False),
        "ct": oblique_affine((0.8, 0.8, 3.0), (-15, 20, 110), flip=True),
        "mr2": np.array([[-1.0, 0, 0, 12], [0, -1.0, 0, 20], [0, 0, 1.5, -8], [0, 0, 0, 1]]),
        "mr3": np.array([[-1.0, 0, 0, 10], [0, -1.0, 0, 15], [0, 0, 1.5, -5], [0, 0, 0, 1]]),
    }
    files = sorted((volumes / "imagesTr").iterdir())
    for (name, affine), file in zip(affines.items(), files):
        modality = name[:2].upper()
        image = np.asarray(nib.load(file).dataobj)
        label = np.asarray(nib.load(volumes / "labelsTr" / file.name).dataobj).astype(np.uint8)
        voxels = np.rint(image / image.max() * 2000).astype(int).clip(0) - (900 if modality == "CT" else 0)
        # columns run to the patient's left and rows to the back, the phantoms' axes to the right and front
        flipped = np.s_[::-1, ::-1]
        (work / name).mkdir()
        series = write_volume(work / name, voxels[flipped], affine, modality, f"PHANTOM-{name}")
        made[name] = Case(series, label[flipped])
    for name, inverted in (("dx", False), ("cr", True)):
        (work / name).mkdir()
        pixels, label = chest_phantom(seed=int(inverted))
        made[name] = Case(write_xray(work / name, pixels, name.upper(), f"PHANTOM-{name}", inverted), label)
    for case in made.values():
        upload(case.series.files)
    return made


@pytest.fixture(scope="package")
def dicom():
    """The app's room of the stores."""
    sys.path.insert(0, str(ROOT / "monailabel_app"))
    try:
        yield importlib.import_module("lib.stores")
    finally:
        sys.path.remove(str(ROOT / "monailabel_app"))


@pytest.fixture(scope="package")
def models(dicom):
    """Of volumes hippocampus and spleen, of X-rays chest_xray; none is trained."""
    served = importlib.import_module("lib.served_model").ServedModel
    return {name: served(ROOT / "bundles" / name) for name in ("hippocampus", "spleen", "chest_xray")}


@pytest.fixture(scope="package")
def bundles(work, volumes) -> dict[str, Path]:
    """Folders of a volume's and an X-ray's bundle that have learnt the phantoms."""
    chests = write_chest_phantoms(work / "chests", cases=10, first_seed=10)
    return {
        "hippocampus": trained_bundle("hippocampus", work / "hippocampus", volumes, epochs=14),
        "chest_xray": trained_bundle("chest_xray", work / "chest_xray", chests, epochs=16),
    }


@pytest.fixture(scope="package")
def server(store, cases, bundles, work):
    """The app's server on the store; yields its log's path."""
    models = ",".join(str(folder) for folder in bundles.values())
    with monai_label(work / "server", store, {"models": models}) as log:
        yield log


@pytest.fixture
def same_weights(bundles):
    """Other tests get the weights that were served before."""
    served = bundles["hippocampus"] / "models" / "model.pt"
    before = served.read_bytes()
    yield
    served.write_bytes(before)


@pytest.fixture
def clean(store, cases):
    """Removes the segmentations that a test leaves."""
    yield
    for series in requests.post(
        f"{STORE}/tools/find", json={"Level": "Series", "Query": {"Modality": "SEG"}}, timeout=30
    ).json():
        requests.delete(f"{STORE}/series/{series}", timeout=30).raise_for_status()
