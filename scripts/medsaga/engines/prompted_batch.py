"""Training with and without prompts, so that one network segments automatically and follows clicks and boxes."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.transforms.utils import generate_spatial_bounding_box

__all__ = ["PreparePromptedBatch"]

_MAX_INSIDE = 3
_MAX_OUTSIDE = 2
_JITTER = 0.1  # of the box's side, as SAM's training has it


class PreparePromptedBatch(PrepareBatch):
    """``prepare_batch`` of a MONAI trainer that gives some batches the prompts an annotator might set.

    Each slice of such a batch gets clicks, a box, or both, for one class that it shows, drawn at random; the target
    stays the whole label map. Random numbers come from torch's global generator, which
    :class:`~medsaga.handlers.TrainingState` seeds by epoch, so that a resumed run draws the same.

    Args:
        probability: share of the batches with prompts. 0 trains automatic segmentation alone.

    Source:
        Segment Anything (arXiv 2304.02643), appendix A, for the jitter of boxes.
    """

    def __init__(self, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, got {probability}.")
        self.probability = probability

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
        """
        Returns:
            image (B, C, S, S), label (B, 1, S, S), and as keyword arguments of the network ``points``
            ((B, N, 2), (B, N)) and ``boxes`` (B, 4), either or both or none, in pixels.
        """
        image = batchdata["image"].to(device, non_blocking=non_blocking, **kwargs)
        label = batchdata["label"].to(device, non_blocking=non_blocking, **kwargs)
        if self.probability == 0 or float(torch.rand(())) >= self.probability:
            return image, label, (), {}
        objects = [_one_class(item[0]) for item in batchdata["label"].cpu()]
        kind = int(torch.randint(3, ()))  # clicks, box, or both
        prompts: dict[str, Any] = {}
        if kind != 1:
            points, labels = zip(*(_clicks(mask) for mask in objects))
            prompts["points"] = (torch.stack(points).to(device), torch.stack(labels).to(device))
        if kind != 0:
            prompts["boxes"] = torch.stack([box_of(mask) for mask in objects]).to(device)
        return image, label, (), prompts


def _one_class(label: torch.Tensor) -> torch.Tensor:
    """Mask (S, S) of one of the classes of a slice; empty where it shows none."""
    classes = label.unique()
    classes = classes[classes > 0]
    if len(classes) == 0:
        return torch.zeros_like(label, dtype=torch.bool)
    return label == classes[int(torch.randint(len(classes), ()))]


def _draw(mask: torch.Tensor, number: int) -> torch.Tensor:
    """Up to ``number`` pixels of a mask, (n, 2) as x, y."""
    rows_columns = mask.nonzero()
    if len(rows_columns) == 0:
        return torch.zeros(0, 2)
    return rows_columns[torch.randint(len(rows_columns), (number,))].flip(1).float()


def _clicks(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clicks inside and, near by, outside an object: (N, 2) x, y and (N,) labels; -1 pads to N."""
    inside = _draw(mask, 1 + int(torch.randint(_MAX_INSIDE, ())))
    outside = _draw(~mask & _neighbourhood(mask), int(torch.randint(_MAX_OUTSIDE + 1, ())))
    number = _MAX_INSIDE + _MAX_OUTSIDE
    points, labels = torch.zeros(number, 2), torch.full((number,), -1.0)
    given = torch.cat([inside, outside])
    points[: len(given)] = given
    labels[: len(inside)], labels[len(inside) : len(given)] = 1.0, 0.0
    return points, labels


def _neighbourhood(mask: torch.Tensor) -> torch.Tensor:
    """An object's box, enlarged by half its size to each side; everything where there is no object."""
    if not mask.any():
        return torch.ones_like(mask)
    (r0, c0), (r1, c1) = generate_spatial_bounding_box(mask[None])
    rows, columns = (r1 - r0) // 2 + 1, (c1 - c0) // 2 + 1
    near = torch.zeros_like(mask)
    near[max(0, r0 - rows) : r1 + rows, max(0, c0 - columns) : c1 + columns] = True
    return near


def box_of(mask: torch.Tensor) -> torch.Tensor:
    """The object's box with jitter, (4,) x0, y0, x1, y1 in pixels; a random one where there is no object."""
    size = mask.shape[-1]
    if not mask.any():
        corners = (torch.rand(2, 2) * size - 0.5).sort(dim=0).values
        return torch.cat([corners[0], corners[1]])
    (r0, c0), (r1, c1) = generate_spatial_bounding_box(mask[None])
    edges = torch.tensor([c0, r0, c1, r1]) - 0.5  # pixel centres are whole numbers here, as in SAM's prompt encoder
    sides = torch.tensor([c1 - c0, r1 - r0] * 2)
    return (edges + torch.randn(4) * (_JITTER * sides).clamp(max=20)).clamp(-0.5, size - 0.5)
