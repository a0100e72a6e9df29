from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from medsaga.data import array_files_datalist, recognise, split_by_patient, training_parts
from medsaga.data.layouts import UnknownLayoutError

from .conftest import again


def synapse(folder: Path) -> Path:
    """As SAMed's preprocessed BTCV: slices for training, volumes for the test."""
    (folder / "train_npz").mkdir()
    (folder / "test_vol_h5").mkdir()
    for case in (5, 6, 7):
        for z in range(3):
            image, label = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
            np.savez(folder / "train_npz" / f"case{case:04}_slice{z:03}.npz", image=image, label=label)
    for case in (1, 2):
        with h5py.File(folder / "test_vol_h5" / f"case{case:04}.npy.h5", "w") as file:
            file["image"] = file["label"] = np.zeros((4, 8, 8), np.float32)
    return folder


def test_slices_of_a_case_are_one_patient(tmp_path):
    layout = recognise(synapse(tmp_path))
    assert [case["patient"] for case in layout.cases] == [
        *["case0001", "case0002"],
        *[f"case000{n}" for n in (5, 6, 7) for _ in range(3)],
    ]
    assert [case["split"] for case in layout.cases] == ["test"] * 2 + ["train"] * 9
    assert all(case["image"] == case["label"] for case in layout.cases)
    assert again(layout, tmp_path) == layout.cases
    parts = training_parts(layout.cases, None, 0.2, 1, None, 0)
    assert [len(parts[name]) for name in ("test", "validation", "train")] == [2, 3, 6]
    assert split_by_patient(layout.cases, 1, 0, None, 0)["test"] != parts["test"]


def test_the_challenge(tmp_path):
    for name in ("2DBox_US_1", "3DBox_CT_2"):
        (tmp_path / "train").mkdir(exist_ok=True)
        np.savez(tmp_path / "train" / f"{name}.npz", imgs=np.zeros((3, 8, 8), np.uint8), gts=np.zeros((3, 8, 8)))
    layout = recognise(tmp_path)
    assert layout.datalist == {"_target_": "medsaga.data.challenge_datalist"}
    assert [case["modality"] for case in layout.cases] == ["US", "CT"]
    assert layout.modality == ""
    assert again(layout, tmp_path) == layout.cases


def test_arrays_without_labels_are_none(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(UnknownLayoutError, match=r"an array gts or label in .*a\.npz"):
        recognise(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="No array file"):
        array_files_datalist(tmp_path / "empty")
