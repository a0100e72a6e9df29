"""Segmentation of one object by clicks and boxes."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from fastapi import HTTPException
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import Invertd
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from lib.infers.answer import write_answer
from lib.infers.prefetch import Prefetcher
from lib.names import chosen
from lib.served_model import COMPUTING, ServedModel, image_key
from lib.versions import PUBLISHED
from medsaga.inferers import PromptedSlices, SlicePrompt

__all__ = ["PromptedTask", "slice_prompts"]


class PromptedTask(InferTask):
    """What points and boxes mark, by the automatic model's weights, or by published ones until there are.

    Request parameters, as Slicer's and OHIF's panels send them:

    * ``foreground``, ``background``: clicks inside and outside the object, lists of voxels ``[i, j, k]`` of the image
      file (``[i, j]`` in 2-D).
    * ``roi``: a box, first and last voxel by axis: ``[i0, i1, j0, j1, k0, k1]``, in 2-D ``[i0, i1, j0, j1]``. In a
      volume it holds on each of its slices.
    * ``label``: name of the class that is meant. Without it, it is the class seen at the clicks.

    The answer is a mask of 0 and 1 on the grid of the image file.

    Args:
        model: the bundle.
        propagate: follow the object from the prompted slices to the others. Clients then show the answer in place of
            all that they had of the object, as a 3-D model's; otherwise in place of the slice that was clicked on.
    """

    def __init__(self, model: ServedModel, propagate: bool = False) -> None:
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
        self.prefetcher = Prefetcher()

    def is_valid(self) -> bool:
        return self.model.trained or self.model.pretrained is not None

    def config(self) -> dict[str, Any]:
        if not self.model.trained:
            return self._config
        published = [PUBLISHED] if self.model.pretrained else []
        return {**self._config, "model_filename": [*self.model.versions(), *published]}

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """
        Returns:
            Path of the mask, and the parameters of the answer.

        Raises:
            HTTPException: 422 for prompts or an image that cannot be used, 409 without any weights.
        """
        start = time.time()
        request = {**self._config, **request}
        device, filename = name_to_device(chosen(request, "device")), chosen(request, "model_filename")
        self.prefetcher.pause()
        with COMPUTING:
            if self.model.trained and filename != PUBLISHED:
                network, weights, head = self.model.network(device, filename), self.model.version(filename), "classes"
            else:
                network, weights, head = self.model.sam_network(device), "pretrained", self.model.sam_head
            image = self.model.prepare(request["image"])
            key = (image_key(request["image"]), weights, device)
            slices = PromptedSlices(image.as_tensor(), network, self.model.embeddings, key, head)
            prompts = slice_prompts(request, image)
            prepared = time.time()
            try:
                mask = slices.segment(prompts, self.model.labels.get(request.get("label")), self.propagate)
            except ValueError as err:
                raise HTTPException(422, f"{self.model.name}_prompt: {err}") from err
            except torch.OutOfMemoryError as err:
                self.model.free_memory()
                raise HTTPException(503, "The GPU has no memory left: wait until others are done, or use cpu.") from err
        segmented = time.time()
        invert = Invertd(keys="pred", transform=self.model.preprocessing, orig_keys="image", nearest_interp=True)
        restored = invert({"pred": MetaTensor(mask[None]), "image": image})["pred"]
        written = write_answer(request, restored, image, self.model.dimension)
        if slices.depth > 1:
            self.prefetcher.start(slices, shown=max(prompts))
        latencies = {
            "pre": round(prepared - start, 3),
            "infer": round(segmented - prepared, 3),
            "write": round(time.time() - segmented, 3),
            "total": round(time.time() - start, 3),
        }
        return written, {"label_names": self.labels, "latencies": latencies}


def slice_prompts(request: dict[str, Any], image: MetaTensor) -> dict[int, SlicePrompt]:
    """Prompts by slice of the preprocessed image, from voxels of the image file.

    Args:
        request: with ``foreground``, ``background`` and ``roi``, see :class:`PromptedTask`.
        image: preprocessed, (C, H, W) or (C, H, W, D), with its affine and the file's.

    Raises:
        HTTPException: 422 when a prompt has another number of coordinates than the image, or none is a number.
    """
    rank = image.ndim - 1
    file_to_image = np.linalg.inv(to_affine_nd(rank, np.asarray(image.affine))) @ to_affine_nd(
        rank, np.asarray(image.meta["original_affine"])
    )
    flat = rank == 2 or image.meta["spatial_shape"][2] == 1  # some clients count the one slice, others do not

    def voxels(points: Any, expected: str) -> np.ndarray:
        try:
            array = np.asarray(points, dtype=float).reshape(len(points), -1 if len(points) else rank)
        except (TypeError, ValueError) as err:
            raise HTTPException(422, f"{expected}; got {points}.") from err
        if flat and array.shape[1] in (2, 3):
            array = np.pad(array[:, :2], ((0, 0), (0, rank - 2)))
        if array.shape[1] != rank:
            raise HTTPException(422, f"{expected}; got {points}.")
        return (np.pad(array, ((0, 0), (0, 1)), constant_values=1) @ file_to_image.T)[:, :rank]

    inside, outside, boxes = defaultdict(list), defaultdict(list), {}
    for found, name in ((inside, "foreground"), (outside, "background")):
        for voxel in voxels(request.get(name) or [], f"{name} must be a list of points of {rank} voxel numbers"):
            found[round(voxel[2]) if rank == 3 else 0].append((voxel[0], voxel[1]))
    if request.get("roi"):
        ends = list(zip(*[iter(np.ravel(request["roi"]).tolist())] * 2))  # by axis
        corners = voxels(list(zip(*ends)), f"roi must be {2 * rank} numbers, first and last voxel by axis")
        limit = np.array(image.shape[1:]) - 1
        low, high = corners.min(axis=0).clip(0, limit), corners.max(axis=0).clip(0, limit)
        first, last = (round(low[2]), round(high[2])) if rank == 3 else (0, 0)
        for index in range(first, last + 1):
            boxes[index] = (low[0], low[1], high[0], high[1])
    return {
        index: SlicePrompt(tuple(inside[index]), tuple(outside[index]), boxes.get(index))
        for index in sorted({*inside, *outside, *boxes})
    }
