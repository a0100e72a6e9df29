"""Read images and labels, or refuse them by name."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import LoadImage, MapTransform

from medsaga.reading import name_without_suffix
from medsaga.reading.reader import MedicalImageReader

__all__ = ["ReadImaged"]


class ReadImaged(MapTransform):
    """Dictionary transform from paths to images with channels first, float32, in the place of MONAI's ``LoadImaged``.

    ``LoadImaged`` goes on to MONAI's other readers where one refuses a file; here a file that
    :func:`~medsaga.reading.open_image` refuses is refused.

    Args:
        keys: of paths.
        label_keys: those of ``keys`` whose values are class numbers.
        allow_missing_keys: skip keys that a case does not have.

    Returns (of a call):
        the data with a MetaTensor (C, W, H) or (C, W, H, D) for each path: affine in RAS, and in its meta ``case``, the
        case's name: ``name`` of the data where it has one, else the file's.

    Raises:
        FileNotFoundError, ReadingError: naming the file.
    """

    def __init__(
        self, keys: KeysCollection, label_keys: KeysCollection = ("label",), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        load = LoadImage(image_only=True, ensure_channel_first=True)
        for key in self.key_iterator(out):
            path = out[key]
            out[key] = load(path, MedicalImageReader(label=key in self.label_keys))
            out[key].meta["case"] = str(data.get("name") or name_without_suffix(path))
        return out
