"""All objects of an image or volume from a box around each, at the cost of one embedding a slice."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor

from medsaga.networks import SamSegmenter

from .click_boxes import Box
from .embedding_cache import EmbeddingCache
from .prompted_slices import PromptedSlices

__all__ = ["BoxInferer"]


class BoxInferer(Inferer):
    """Segment what is in each of many boxes, and number the objects.

    A slice is embedded once, and its boxes are decoded several at a time. Where objects overlap, a pixel belongs to
    the box with the largest logit; it is background where none is above 0. Boxes of a volume are decoded on each slice
    from z0 to z1. Memory depends on the slice's size and ``boxes_per_pass``, not on the number of boxes or slices.

    Args:
        head: what the network's masks mean, as in :class:`~medsaga.inferers.PromptedSlices`. ``sam`` and ``sam_boxes``:
            the first of SAM's masks is the object, as SAM's authors and LiteMedSAM's take it without multimask output.
            ``classes``: the object is the class that the network sees most in the box.
        boxes_per_pass: boxes that the decoder takes at once. More boxes need more memory in proportion and are no
            faster on a CPU.

    Raises:
        ValueError: ``head`` is none of these, or ``boxes_per_pass`` is less than 1.

    Source:
        Multi-box inference of LoRA on LiteMedSAM in the CVPR 2024 "MedSAM on Laptop" challenge.
    """

    def __init__(self, head: str = "sam_boxes", boxes_per_pass: int = 4) -> None:
        if boxes_per_pass < 1:
            raise ValueError(f"boxes_per_pass must be at least 1, got {boxes_per_pass}.")
        self.head = head
        self.boxes_per_pass = boxes_per_pass

    @torch.no_grad()
    def __call__(
        self, inputs: torch.Tensor, network: SamSegmenter, boxes: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Args:
            inputs: one image (1, C, H, W) or volume (1, C, H, W, D), intensities in [0, 1].
            network: in ``eval()``; or an :class:`~medsaga.export.ExportedSegmenter`.
            boxes: first and last column and row (in a volume also slice) within each object, in voxels: (N, 4) with x0,
                y0, x1, y1, or (N, 6) with x0, y0, z0, x1, y1, z1. Parts beyond the image are cut off.

        Returns:
            numbers of boxes from 1, 0 for none: (1, 1, H, W[, D]), uint8 up to 255 boxes, int32 beyond.

        Raises:
            ValueError: more than one image, boxes of another shape, or a box that is empty or outside the image.
        """
        image = convert_to_tensor(inputs, track_meta=False)
        if image.ndim not in (4, 5) or image.shape[0] != 1:
            raise ValueError(
                f"inputs have shape {tuple(image.shape)}; they must be one image or volume, (1, C, H, W[, D])."
            )
        slices = _BoxedSlices(image[0], network, self.head)
        by_slice = _by_slice(torch.as_tensor(boxes, dtype=torch.float32), slices.shape, image.shape[4:])
        dtype = torch.uint8 if len(boxes) <= 255 else torch.int32
        numbers = torch.zeros((slices.depth, *slices.shape), dtype=dtype)
        for index, own in by_slice.items():
            best = torch.zeros(slices.shape)
            for start in range(0, len(own), self.boxes_per_pass):
                some = own[start : start + self.boxes_per_pass]
                margin, first = slices.margins(index, [box for _, box in some]).max(dim=0)
                # if logits are equal, the first box stays, as in an argmax over all boxes
                larger = margin > best
                best = torch.where(larger, margin, best)
                number = torch.tensor([number for number, _ in some], dtype=dtype)
                numbers[index] = torch.where(larger, number[first], numbers[index])
        numbers = numbers.permute(1, 2, 0) if image.ndim == 5 else numbers[0]
        return convert_to_dst_type(numbers[None, None], inputs, dtype=dtype)[0]


class _BoxedSlices(PromptedSlices):
    """Slices of which only the last embedding is kept: one slice's boxes all come before the next slice."""

    def __init__(self, image: torch.Tensor, network: SamSegmenter, head: str) -> None:
        super().__init__(image, network, EmbeddingCache(), None, head)

    def embed(self, index: int) -> torch.Tensor:
        if (self.key, index) not in self.cache:
            self.cache.clear()
        return super().embed(index)

    def margins(self, index: int, boxes: list[Box]) -> torch.Tensor:
        """Logits (n, H, W) of the objects in n boxes of a slice against all else."""
        logits = self._logits(index, boxes=boxes)
        if self.head != "classes":
            return logits[:, 0]
        margins = []
        for (row0, column0, row1, column1), own in zip(boxes, logits):
            within = own.softmax(dim=0)[1:, round(row0) : round(row1) + 1, round(column0) : round(column1) + 1]
            seen = int(within.mean(dim=(1, 2)).argmax()) + 1
            margins.append(own[seen] - torch.cat([own[:seen], own[seen + 1 :]]).amax(dim=0))
        return torch.stack(margins)


def _by_slice(boxes: torch.Tensor, shape: tuple[int, int], depth: tuple[int, ...]) -> dict[int, list[tuple[int, Box]]]:
    """Number from 1 and box of all objects on each slice that has any, cut to the image."""
    axes = 3 if depth else 2
    if boxes.ndim != 2 or boxes.shape[1] != 2 * axes:
        wanted = "(N, 6) with x0, y0, z0, x1, y1, z1" if depth else "(N, 4) with x0, y0, x1, y1"
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}; they must be {wanted}.")
    last = torch.tensor([shape[1], shape[0], *depth]) - 1.0
    low, high = boxes[:, :axes].clamp(min=0), boxes[:, axes:].minimum(last)
    by_slice: dict[int, list[tuple[int, Box]]] = {}
    for number, (first, final) in enumerate(zip(low.tolist(), high.tolist()), start=1):
        if not all(a <= b for a, b in zip(first, final)):
            raise ValueError(
                f"box {number}, {boxes[number - 1].tolist()}, is empty or outside the image of "
                f"{' × '.join(str(int(n) + 1) for n in last)} (x, y{', z' if depth else ''})."
            )
        box = (first[1], first[0], final[1], final[0])
        for index in range(round(first[2]), round(final[2]) + 1) if depth else (0,):
            by_slice.setdefault(index, []).append((number, box))
    return by_slice
