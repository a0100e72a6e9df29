"""A label completed by a prediction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from medsaga.reading.labels import UNLABELLED

__all__ = ["FillUnlabelledd"]


class FillUnlabelledd(MapTransform):
    """Put what a person has labelled into a prediction; the rest of it stays as predicted.

    Args:
        keys: of predictions, class numbers (1, H, W) or (1, H, W, D).
        label_key: of the label, of the same shape. Voxels of 255 are not labelled. Without a label nothing changes.
        slices_key: of the positions along the last axis of the slices whose label counts; of a 2-D image it is 0 or
            nothing. Without it all count.
    """

    def __init__(
        self, keys: KeysCollection = "pred", label_key: str = "label", slices_key: str = "known_slices"
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.slices_key = slices_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        if out.get(self.label_key) is None:
            return out
        label = convert_to_tensor(out[self.label_key], track_meta=False)
        known = label != UNLABELLED
        if (slices := out.get(self.slices_key)) is not None:
            counts = torch.zeros(label.shape[-1] if label.ndim == 4 else 1, dtype=torch.bool)
            counts[torch.as_tensor(slices, dtype=torch.int64).flatten()] = True
            known = known & counts.to(known.device)
        for key in self.key_iterator(out):
            pred = out[key].clone()  # with the image's affine
            where = known.to(pred.device)
            pred[where] = label.to(pred.device, pred.dtype)[where]
            out[key] = pred
        return out
