"""Which slices of an image an annotator is asked to label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monai.data import MetaTensor
from monai.utils import TraceKeys, convert_to_tensor

from lib.served_model import COMPUTING, ServedModel
from medsaga.active_learning import class_stratified, class_uncertainty, evenly_spaced
from medsaga.transforms import OrientSlicesd, fit_square

__all__ = ["SliceChoice"]

_LOOKED_AT = 32  # slices of a volume, evenly spaced: neighbours say nearly the same
_BETA = 2.0  # of the noise that keeps neighbours apart
_BATCH = 4


class SliceChoice:
    """Slices of a volume, by their numbers along the third axis of its file, as ``labelled_slices`` has them.

    With a trained model they are those that it is unsure of, each class in turn
    (:func:`~medsaga.active_learning.class_stratified`); without one they are evenly spaced. The same image gets the
    same slices as long as the model is the same.

    Args:
        models: by name; the first chooses the slices unless a request names another.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = models

    def __call__(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """
        Args:
            path: of the image.
            request: its ``slices`` is how many are wanted, its ``model`` the bundle that chooses.

        Returns:
            ``slices``, and ``slices_why``; nothing for a 2-D image.

        Raises:
            HTTPException: 422 when the image cannot be read, 404 for an unknown model.
        """
        name = request.get("model") or next(iter(self.models))
        if name not in self.models:
            raise HTTPException(404, f"There is no model {name!r}; known are {', '.join(self.models)}.")
        model = self.models[name]
        image = model.prepare(path)
        if image.ndim != 4:
            return {}
        number = _numbers(image)
        if number is None:
            why = "the model's slices do not lie along the third axis of the file, so label the whole volume"
            return {"slices": [], "slices_why": why}
        count, wanted = image.shape[-1], int(request["slices"])
        looked_at = evenly_spaced(count, _LOOKED_AT)
        if not model.trained:
            return {
                "slices": sorted(number(i) for i in evenly_spaced(count, wanted)),
                "slices_why": "evenly spaced",
            }
        scores = torch.cat(list(self._scores(model, convert_to_tensor(image, track_meta=False), looked_at)))
        # by file name, so that the same slices are chosen wherever the images are stored
        seed = int.from_bytes(hashlib.sha256(Path(path).name.encode()).digest()[:4], "big")
        chosen = class_stratified(scores, wanted, _BETA, torch.Generator().manual_seed(seed))
        return {
            "slices": sorted(number(looked_at[i]) for i in chosen),
            "slices_why": f"{name} is unsure of their classes",
        }

    @staticmethod
    def _scores(model: ServedModel, image: torch.Tensor, positions: list[int]) -> Any:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = model.network(device)
        for start in range(0, len(positions), _BATCH):
            slices = image[..., positions[start : start + _BATCH]].permute(3, 0, 1, 2).float()
            # the lock must only be held for a short time
            with COMPUTING, torch.no_grad():
                yield class_uncertainty(network(fit_square(slices, network.image_size).to(device))).cpu()


def _numbers(image: MetaTensor) -> Any:
    """From a slice's position after preprocessing to its number along the file's third axis; None where it is none."""
    turned = next(
        operation[TraceKeys.EXTRA_INFO]
        for operation in image.applied_operations
        if operation[TraceKeys.CLASS_NAME] == OrientSlicesd.__name__
    )
    if turned["permutation"][2] != 2:
        return None
    last = image.shape[-1] - 1
    return (lambda i: last - i) if 2 in turned["flips"] else (lambda i: i)
