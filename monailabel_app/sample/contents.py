"""What ``make serve`` gives to annotate: images in a folder, or CT and MR in a DICOM store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel_app.sample.orthanc import Store
from monailabel_app.sample.phantom_ct import phantom_ct
from monailabel_app.sample.series import as_series

from medsaga.experiments.bundle_copy import copy_bundle
from medsaga.files import write_json

__all__ = ["fill_folder", "fill_store", "write_abdomen"]

_MR, _CT = 12, 3  # volumes: enough to choose from and to train on; hundreds would be sent for minutes
_SPLEEN = "Task09_Spleen"
_BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
# SAM's ViT-B would have to be downloaded, and takes seconds for a click on a CPU; LiteMedSAM comes with a package
_LIGHT = {
    "network_def#encoder": "vit_t",
    "weights": "lite_medsam",
    "image_size": 128,
    "batch_size": 2,
    "checkpointing": "off",
    "encoder_lr": 0.0002,
    "lr": 0.001,
    "warmup_steps": 50,
}


def fill_folder(folder: Path, data: Path) -> str:
    """Copy the images of the sample data that are not there yet.

    Args:
        folder: for the images, made if need be.
        data: for a download or phantoms.

    Returns:
        what they are, in a sentence.
    """
    images, source = _mr_files(data)
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        if not (folder / image.name).exists():
            shutil.copy(image, folder)
    return f"Sample images without labels: {source}."


def fill_store(store: Store, folder: Path, data: Path) -> str:
    """Send sample CT and MR to a DICOM store, once for each folder of a store.

    Args:
        store: that runs.
        folder: of its images; a note of what was sent is kept there.
        data: for a download or phantoms.

    Returns:
        what they are, in a sentence.

    Raises:
        RuntimeError: the store does not take an image.
    """
    sent = folder / "sent.json"
    if not sent.is_file():  # written last: a sending that was broken off is done again, and adds nothing twice
        client = DICOMwebClient(store.url, session=create_session_from_user_pass(store.user, store.password))
        images, source = _mr_files(data)
        for image in images[:_MR]:
            _send(client, "MR", _name(image), nib.load(image))
        cts = _ct_files()[:_CT]
        for image in cts:
            _send(client, "CT", _name(image), nib.load(image))
        for seed in range(_CT if not cts else 0):
            _send(client, "CT", f"drawn_abdomen_{seed}", phantom_ct(seed)[0])
        ct = f"{len(cts)} of {_SPLEEN} (MEDSAGA_DATA)" if cts else f"{_CT} drawn ones, not of patients"
        text = f"Sample images in the DICOM store. MR, {len(images[:_MR])}: {source}. CT, {ct}."
        write_json(sent, {"text": text})
    return json.loads(sent.read_text())["text"]


def write_abdomen(folder: Path) -> Path:
    """The bundle ``amos`` (15 organs of the abdomen) with LiteMedSAM's encoder: for a CPU, without a download.

    Args:
        folder: for bundles. What was trained there stays.

    Returns:
        the bundle's folder.
    """
    bundle = folder / "abdomen"
    shutil.rmtree(bundle / "configs", ignore_errors=True)  # of an older version of this program
    bundle.mkdir(parents=True, exist_ok=True)
    return copy_bundle(_BUNDLES / "amos", bundle, _LIGHT)


def _mr_files(data: Path) -> tuple[list[Path], str]:
    from medsaga.demo import sample_data  # its imports take seconds, which a second start need not wait for

    folder, source = sample_data(data)
    return _images(folder), source


def _ct_files() -> list[Path]:
    folder = Path(os.environ.get("MEDSAGA_DATA", "data")).expanduser() / _SPLEEN
    return _images(folder) if (folder / "dataset.json").is_file() else []


def _images(folder: Path) -> list[Path]:
    from medsaga.data import decathlon_datalist

    return [Path(case["image"]) for case in decathlon_datalist(folder)]


def _name(image: Path) -> str:
    return image.name.split(".")[0]


def _send(client: DICOMwebClient, modality: str, name: str, volume: nib.Nifti1Image) -> None:
    answer = client.store_instances(as_series(volume, modality, name, f"Sample {modality}"))
    if refused := answer.get("FailedSOPSequence"):
        raise RuntimeError(f"the DICOM store refuses {len(refused)} slices of {name}")
