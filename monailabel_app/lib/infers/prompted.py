"""Segmentation of one object by clicks, boxes and scribbles."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fastapi import HTTPException
from monai.data import MetaTensor
from monai.transforms import Invertd
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from lib.infers.answer import write_answer
from lib.infers.finished import FinishedObjects, Region
from lib.infers.prefetch import Prefetcher
from lib.infers.prompts import Placing, slice_prompts
from lib.model_versions import PUBLISHED
from lib.names import chosen
from lib.served_model import BEST, COMPUTING, PLANES, ServedModel, image_key
from medsaga.inferers import PromptedSlices, SlicePrompt

__all__ = ["PromptedTask"]


class PromptedTask(InferTask):
    """Segment what points, boxes and scribbles mark, with the automatic model's weights or with published ones.

    Request parameters, as Slicer's and OHIF's panels send them:

    * ``foreground``, ``background``: clicks inside and outside the object, lists of voxels ``[i, j, k]`` of the image
      file (``[i, j]`` in 2-D).
    * ``scribbles``: lines inside and outside, ``{"inside": true, "points": [[i, j, k], ...]}``; points along them are
      clicks, after the others.
    * ``roi``: a box, first and last voxel by axis: ``[i0, i1, j0, j1, k0, k1]``, in 2-D ``[i0, i1, j0, j1]``. In a
      volume it holds on each of its slices, and more boxes may follow; on a slice the last one counts.
    * ``plane``: of the slices of a volume: ``axial``, ``coronal``, ``sagittal`` or ``auto``; by default the bundle's
      own.
    * ``label``: name of the class that is meant. Without it, it is the class seen at the clicks.
    * ``replace``: take voxels of finished objects of other labels too (:class:`~lib.infers.finished.FinishedObjects`).
      A request without a label always takes them, because it does not say which label the object has.
    * ``model_filename``: weights by their name; ``best``, the default, means those that follow prompts better.

    The answer is a mask of 0 and 1 on the grid of the image file.

    Args:
        model: the bundle.
        propagate: follow the object from the prompted slices to the others. Clients then replace the whole object by
            the answer, as they do for a 3-D model; otherwise they replace only the slice that was clicked on.
        finished: of the bundle's images; its own unless given.
    """

    def __init__(self, model: ServedModel, propagate: bool = False, finished: FinishedObjects | None = None) -> None:
        super().__init__(
            type=InferType.DEEPGROW,
            # OHIF takes negative clicks from the points of a label of this name
            labels={"background": 0, **model.labels},
            dimension=3 if propagate else 2,
            description=f"{model.metadata['name']}: points and boxes, "
            + ("through the volume" if propagate else "by slice"),
            config={"device": device_list()},
        )
        self.model = model
        self.propagate = propagate
        self.finished = finished or FinishedObjects(model.labels)
        self.prefetcher = Prefetcher()

    def is_valid(self) -> bool:
        return self.model.trained or self.model.pretrained is not None

    def config(self) -> dict[str, Any]:
        options = {**self._config, "replace": False}
        if self.model.dimension == 3:
            options["plane"] = [self.model.plane, *(plane for plane in PLANES if plane != self.model.plane)]
        if self.model.trained:
            published = [PUBLISHED] if self.model.pretrained else []
            options["model_filename"] = [BEST, *self.model.versions(), *published]
        return options

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """
        Returns:
            Path of the mask, and the parameters of the answer: ``weights``, the file that answered or ``published``,
            and ``kept``, the labels of finished objects that the answer was kept out of.

        Raises:
            HTTPException: 422 for prompts or an image that cannot be used, and prompts inside a finished object of
                another label; 409 without any weights.
        """
        start = time.time()
        request = {**self._config, **request}
        device, plane = name_to_device(chosen(request, "device")), request.get("plane")
        self.prefetcher.pause()
        with COMPUTING:
            weights = self.model.prompt_weights(chosen(request, "model_filename"))
            if weights == PUBLISHED:
                network, version, head = self.model.sam_network(device), "pretrained", self.model.sam_head
            else:
                network, version, head = self.model.network(device, weights), self.model.version(weights), "classes"
            image = self.model.prepare(request["image"], plane)
            key = (image_key(request["image"]), plane, version, device)
            slices = PromptedSlices(image.as_tensor(), network, self.model.embeddings, key, head)
            prompts, placing = slice_prompts(request, image), Placing(image)
            label = self.finished.name(request.get("label"))
            of = (request["image"], request.get("final_label"))
            objects = self.finished.of(*of, image.meta["spatial_shape"]) if label else {}
            others = {} if request.get("replace") else {name: o for name, o in objects.items() if name != label}
            _refuse_inside(others, prompts, placing)
            prepared = time.time()
            try:
                protected = _all_of(others, placing)
                mask = slices.segment(prompts, self.model.labels.get(label), self.propagate, protected)
            except ValueError as err:
                raise HTTPException(422, f"{self.model.name}_prompt: {err}") from err
            except torch.OutOfMemoryError as err:
                self.model.free_memory()
                raise HTTPException(
                    503, "The GPU has no memory left: wait until others are done, or choose cpu."
                ) from err
        segmented = time.time()
        invert = Invertd("pred", self.model.preprocessing(plane), orig_keys="image", nearest_interp=True)
        restored = invert({"pred": MetaTensor(mask[None]), "image": image})["pred"]
        answer = restored[0].as_tensor().numpy()
        kept = [name for name, region in others.items() if region.set_in(answer, 0)]
        answer[answer > 1] = 0  # remains at the edge of a neighbouring object if the image was resampled
        if label:
            by_slice = None if self.propagate or slices.depth == 1 else placing.slices(list(prompts))
            self.finished.keep(*of, label, answer, by_slice, bool(request.get("replace")))
        written = write_answer(request, restored, image, self.model.dimension)
        if slices.depth > 1:
            self.prefetcher.start(slices, shown=max(prompts))
        latencies = {
            "pre": round(prepared - start, 3),
            "infer": round(segmented - prepared, 3),
            "write": round(time.time() - segmented, 3),
            "total": round(time.time() - start, 3),
        }
        weights = self.model.known_as(weights)
        return written, {"label_names": self.labels, "weights": weights, "kept": kept, "latencies": latencies}


def _refuse_inside(others: Mapping[str, Region], prompts: Mapping[int, SlicePrompt], placing: Placing) -> None:
    """422 where a positive click, or all of a box, lies in one of these objects."""
    asked, box = [], []
    for index, prompt in prompts.items():
        asked += [("A point", [(row, column, index)]) for row, column in prompt.inside]
        if prompt.box is not None:  # pixels whose centres are in the box, as in PromptedSlices
            low, high = ([math.ceil(v - 0.5) for v in prompt.box[:2]], [math.floor(v + 0.5) for v in prompt.box[2:]])
            box += [(*low, index), (*high, index)]
    asked += [("The box", box)] if box else []
    for what, corners in asked:
        voxels = placing.in_file(corners)
        low, high = voxels.min(axis=0).tolist(), voxels.max(axis=0).tolist()
        where = [slice(first, last + 1) for first, last in zip(low, high)]
        for name, region in others.items():
            if region.covers([*where, slice(0, 1)][:3]):
                at = f"{low}" if low == high else f"{low} to {high}"
                raise HTTPException(
                    422,
                    f"{what}, {at}, lies in {name}, which is finished. First remove {name} there by negative points "
                    f"for it, or set replace (one of the model's options) to overwrite {name}.",
                )


def _all_of(others: Mapping[str, Region], placing: Placing) -> np.ndarray | None:
    """The voxels of these objects, on the prepared image; None of none."""
    if not others:
        return None
    taken = np.zeros(next(iter(others.values())).shape, dtype=bool)
    for region in others.values():
        region.set_in(taken, 1)
    return placing.mask_in_image(taken)
