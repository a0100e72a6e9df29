"""Images without labels, as pre-training takes them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from monai.transforms import Compose, MapTransform

from .datalists import Datalist, images_datalist

__all__ = ["for_unlabelled", "unlabelled_datalist"]


def unlabelled_datalist(dataset_dir: str | Path, sequences: Sequence[str] | None = None) -> Datalist:
    """Every image in a folder and the folders in it, ``[{"image": path}]``: volumes, pictures and DICOM series.

    :func:`~medsaga.data.found_images.find_images` defines what counts as an image. Label maps cannot be distinguished
    from images, so name a folder without them, such as ``imagesTr``.

    Args:
        dataset_dir: the folder.
        sequences: as of :func:`~medsaga.data.images_datalist`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: two images of the same name.
    """
    root = Path(dataset_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"No folder of images at {root.absolute()}. Name it with --dataset_dir FOLDER.")
    return [{"image": case["image"]} for case in images_datalist(root, sequences)]


def for_unlabelled(transforms: Compose) -> Compose:
    """A copy of dictionary transforms of image and label that also accepts cases without a label.

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
