"""Automatic segmentation of an image with the bundle's trained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask

from lib.infers.answer import write_answer
from lib.infers.finished import FinishedObjects
from lib.infers.prompts import Placing
from lib.names import chosen
from lib.served_model import COMPUTING, ServedModel
from medsaga.active_learning import unsure_pixels
from medsaga.transforms import SaveMaskd

__all__ = ["AutomaticTask"]


class AutomaticTask(BundleInferTask):
    """MONAI Label's own task for a bundle, with the server's shared network.

    What differs: a bundle without a trained model is offered as soon as it has one; weights that do not fit are refused
    instead of served as far as they go; other versions may be chosen by ``model_filename``, and no other file; volumes
    are announced as 3-D though the network works on slices; the mask of a 2-D image is 2-D; in the answer, finished
    objects of the image stay as they are and their classes occur nowhere else, unless the request says ``replace``.

    Args:
        model: the bundle.
        finished: of the bundle's images; its own unless given.
    """

    def __init__(self, model: ServedModel, finished: FinishedObjects | None = None) -> None:
        self.model = model
        self.finished = finished or FinishedObjects(model.labels)
        self.valid = False
        self.description = model.metadata["description"]
        self._prepare()

    def _prepare(self) -> None:
        if self.valid or not self.model.trained:
            return
        super().__init__(
            str(self.model.path),
            {},
            type=InferType.SEGMENTATION,
            post_filter=[SaveMaskd],
            add_post_restore=False,
        )
        self.network = None  # MONAI Label's own copy; the shared one is used
        self.labels = self.model.labels
        self.dimension = self.model.dimension

    def is_valid(self) -> bool:
        self._prepare()
        return self.model.trained

    def config(self) -> dict[str, Any]:
        return {**self._config, "replace": False, "model_filename": self.model.versions()}

    def __call__(self, request: dict[str, Any], callbacks: dict | None = None) -> tuple[str | None, dict[str, Any]]:
        self.model.checkpoint(chosen(request, "model_filename"))
        self._prepare()
        return super().__call__(request, callbacks)

    def _get_network(self, device: str, data: dict[str, Any] | None) -> torch.nn.Module:
        return self.model.network(device, chosen(data or {}, "model_filename"))

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cpu") -> dict[str, Any]:
        with COMPUTING:
            try:
                return self._with_doubt(data, convert_to_batch, device)
            except torch.OutOfMemoryError:
                self.model.free_memory()
            # a slice at a time, which any GPU that can train has room for
            self.bundle_config["inferer"]["batch_size"] = 1
            self.bundle_config.parse(reset=True)
            try:
                return self._with_doubt(data, convert_to_batch, device)
            except torch.OutOfMemoryError as err:
                self.model.free_memory()
                raise HTTPException(
                    503, f"The GPU has no memory left for {self.model.name}: wait until others are done, or choose cpu."
                ) from err

    def _with_doubt(self, data: dict[str, Any], convert_to_batch: bool, device: str) -> dict[str, Any]:
        """MONAI Label's ``run_inferer``; for a volume it also finds the slice with the most unsure pixels."""
        doubt: list[torch.Tensor] = []
        network = self._get_network(device, data)
        hook = network.register_forward_hook(lambda _, __, logits: doubt.append(unsure_pixels(logits).cpu()))
        try:
            data = super().run_inferer(data, convert_to_batch, device)
        finally:
            hook.remove()
        if self.model.dimension == 3:
            # with several planes, the volume's own comes first
            index = int(torch.cat(doubt)[: data[self.key_image].shape[-1]].argmax())
            axis, (at,) = Placing(data[self.key_image]).slices([index])
            if axis == 2:
                data.setdefault("result", {})["least_sure_slice"] = at
        return data

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[str, dict[str, Any]]:
        """
        Returns:
            the file of the mask, and the parameters of the answer: ``least_sure_slice``, a number along the file's
            third axis, if slices lie across that axis; ``kept``, the classes of finished objects in the mask; and, if
            there are any, ``own``, a second file with the model's own mask.
        """
        request, mask, image = {**data, "image": data["image_path"]}, data[self.key_pred], data[self.key_image]
        written = write_answer(request, mask, image, self.model.dimension)
        result = {**data.get("result", {}), "kept": []}
        if request.get("replace"):
            return written, result
        objects = self.finished.of(request["image"], request.get("final_label"), mask.shape[1:])
        objects = {name: region for name, region in objects.items() if name in self.model.labels}
        if objects:
            result |= {"kept": list(objects), "own": written}
            mask = mask.cpu()
            values = mask[0].as_tensor().numpy()
            values[np.isin(values, [self.model.labels[name] for name in objects])] = 0
            for name, region in objects.items():
                region.set_in(values, self.model.labels[name])
            written = write_answer(request, mask, image, self.model.dimension)
        return written, result
