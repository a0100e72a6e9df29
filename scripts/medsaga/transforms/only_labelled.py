"""Score only labelled voxels, where labels leave voxels out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medsaga.reading.labels import UNLABELLED

__all__ = ["OnlyLabelledd"]


class OnlyLabelledd(MapTransform):
    """Background where the label is 255, in label and prediction alike: unlabelled voxels have no effect on scores.

    A surface that crosses from labelled to unlabelled slices ends there in both.

    Args:
        keys: of maps of class numbers (1, ...), of the label's shape.
        label_key: of the label.
    """

    def __init__(self, keys: KeysCollection = ("pred", "label"), label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        unknown = out[self.label_key] == UNLABELLED
        if unknown.any():
            for key in self.key_iterator(out):
                out[key] = out[key].masked_fill(unknown.to(out[key].device), 0)
        return out
