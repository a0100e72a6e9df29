"""Folders of small images and labels under any names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from medsaga.data import Layout, recognise


def write_file(path: Path, values: tuple[int, ...] = (), seed: int = 0) -> Path:
    """An image with noise, or a label with these values; a volume or a picture as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed + len(path.name))
    volume = ".nii" in path.name or path.suffix in (".nrrd", ".mha")
    shape = (12, 11, 6) if volume else (12, 11)
    if values:
        array = np.zeros(shape, np.uint8)
        for number, value in enumerate(values):
            array[2 * number : 2 * number + 2, 2:7] = value
    else:
        array = random.randint(0, 255, shape).astype(np.float32 if volume else np.uint8)
    if volume:
        nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    else:
        Image.fromarray(array).save(path)
    return path


def write_tree(root: Path, files: Mapping[str, tuple[int, ...]]) -> Path:
    """Files by path below a folder, each with the values of a label or none for an image."""
    for seed, (name, values) in enumerate(files.items()):
        write_file(root / name, values, 31 * seed)
    return root


def again(layout: Layout, folder: Path) -> list[dict[str, Any]]:
    """The cases that a config with the layout's component lists."""
    config = ConfigParser({"dataset_dir": str(folder), "datalist": {**layout.datalist, "dataset_dir": "@dataset_dir"}})
    return config.get_parsed_content("datalist")


@pytest.fixture
def recognised(tmp_path) -> Callable[..., Layout]:
    """Writes a tree and recognises it; its component in a config has to give the same cases."""

    def recognised_tree(files: Mapping[str, tuple[int, ...]], labels: str | None = None, root: str = "") -> Layout:
        write_tree(tmp_path, files)
        folder = tmp_path / root if root else tmp_path
        layout = recognise(folder, None if labels is None else tmp_path / labels)
        assert again(layout, folder) == layout.cases
        return layout

    return recognised_tree
