"""What the tests of labels and stores share: images, labels, and how they are saved and refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException

AFFINE = np.array([[-1.0, 0, 0, 10], [0, 2, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]])
SHAPE = (8, 10, 6)


def save(store, tmp_path, values, affine=AFFINE, image="case", tag="final", name="upload.nii.gz", **info):
    path = tmp_path / name
    nib.save(nib.Nifti1Image(values, affine), path)
    store.save_label(image, str(path), tag, info)
    return store.last_save()


def stored(store, image="case", tag="final"):
    return np.asarray(nib.load(store.get_label_uri(image, tag)).dataobj)


def refused(status, function, *args):
    with pytest.raises(HTTPException) as caught:
        function(*args)
    assert caught.value.status_code == status, caught.value.detail
    return caught.value.detail


def a_label(*classes):
    label = np.zeros(SHAPE, dtype=np.uint8)
    for index, value in enumerate(classes):
        label[2 * index + 1, 2:5, 2:4] = value
    return label


def everything(folder):
    """All files below a folder but locks, with their content."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
