"""The same images and labels in every layout are the same cases."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsaga.data import recognise, write_decathlon_phantoms
from medsaga.reading import open_image
from medsaga.reading.label_forms import open_label

from .conftest import again
from .rewritten import FORMS, rewrite

NAMES = {  # of the layout
    "nnU-Net v2": "nnU-Net v2",
    "nnU-Net v1": "nnU-Net v1",
    "csv": "table cases.csv",
    "json": "table datalist.json",
    "BIDS": "Brain Imaging Data Structure",
    "one-hot": "two folders (images, labels)",
    "one file a class": "names of files",
}


def voxels(case, names):
    """Image and class numbers, by the reader."""
    image = open_image(case["image"])
    return image.load(), open_label(case["label"], names, image.grid).load()


def assert_same(source: Path, folder: Path, form: str, most: int) -> None:
    expected, found = recognise(source), recognise(folder)
    assert found.name.startswith(NAMES[form])
    assert again(found, folder) == found.cases
    assert found.notes == () or form == "one file a class"
    first = expected.cases[:most]
    assert len(found.cases) == len(first)
    assert len({case["patient"] for case in found.cases}) == len(first)
    names = ["background", *expected.classes]
    if found.classes is not None:
        assert [n.lower() for n in found.classes] == [n.lower() for n in expected.classes]
        assert list(found.classes.values()) == [1, 2]
    for one, other in zip(first, found.cases):
        for mine, theirs in zip(voxels(one, names), voxels(other, names)):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_phantoms(tmp_path, form):
    source = write_decathlon_phantoms(tmp_path / "source", 4, (10, 12, 9))
    assert_same(source, rewrite(source, tmp_path / form, form), form, 4)


@pytest.mark.parametrize("form", FORMS)
def test_real_data(tmp_path, sample_data, form):
    source = sample_data / "Task04_Hippocampus"
    folder = rewrite(source, tmp_path / form, form, most=5)
    assert_same(source, folder, form, 5)
    assert any(np.asarray(nib.load(path).dataobj).any() for path in folder.rglob("*.nii.gz"))
