"""Images without labels, as pre-training takes them."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from monai.transforms import Compose, MapTransform

from .datalists import Datalist, images_datalist

__all__ = ["for_unlabelled", "unlabelled_datalist"]

_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".jpg", ".jpeg")


def unlabelled_datalist(dataset_dir: str | Path) -> Datalist:
    """Every image in a folder and the folders in it, ``[{"image": path}]``: images by suffix, and DICOM series.

    A folder that holds DICOM files and nothing else is one series, whatever its files are called. Hidden files and
    folders, and files of other kinds, are passed over. Label maps cannot be told from images: name a folder without
    them, such as ``imagesTr``.

    Args:
        dataset_dir: the folder.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    root = Path(dataset_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"No folder of images at {root.absolute()}. Name it with --dataset_dir FOLDER.")
    datalist: Datalist = []
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # where the walk goes on
        paths = [Path(parent, name) for name in sorted(files) if not name.startswith(".")]
        images = [{"image": str(path)} for path in paths if path.name.lower().endswith(_SUFFIXES)]
        if not images and paths:
            images = [case for case in images_datalist(parent) if case["image"] == parent]  # a DICOM series
        datalist += images
    if not datalist:
        raise FileNotFoundError(
            f"No image in {root.absolute()} or the folders in it; looked for *{', *'.join(_SUFFIXES)} and for folders "
            "of DICOM files."
        )
    return datalist


def for_unlabelled(transforms: Compose) -> Compose:
    """A copy of dictionary transforms of image and label that takes cases without a label, too.

    Args:
        transforms: a bundle's preprocessing or augmentation.

    Returns:
        The same transforms, which skip a key that a case does not have.
    """
    copied = copy.deepcopy(transforms)
    _skip_missing(copied)
    return copied


def _skip_missing(transforms: Compose) -> None:
    for transform in transforms.transforms:
        if isinstance(transform, Compose):
            _skip_missing(transform)
        elif isinstance(transform, MapTransform):
            transform.allow_missing_keys = True
