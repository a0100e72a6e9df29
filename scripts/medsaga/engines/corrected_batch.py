"""Training on prompts that correct the network: clicks where it is wrong about one class."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from monai.transforms.utils import generate_spatial_bounding_box
from torch.nn import functional as F

from medsaga.networks import SamSegmenter, mask_prompt
from medsaga.reading.labels import UNLABELLED

__all__ = ["OneClassInferer", "PrepareCorrectedBatch"]

_JITTER = 0.1  # of the box's side, as SAM's training has it


class PrepareCorrectedBatch(PrepareBatch):
    """``prepare_batch`` of a MONAI trainer that gives some batches the prompts of an annotator who corrects.

    Each slice of such a batch gets prompts about one class that it shows, drawn at random: first a box with jitter, or
    a click at random inside; then clicks, one after another. Each is drawn from the pixels where the network, given the
    earlier prompts, is wrong about that class: positive where it has missed the class, negative where it has drawn it
    by mistake. The mask that a click corrects is given with it. A slice that shows no object gets clicks where the
    network draws one. The number of clicks is drawn for each batch.

    The target is that class against all else, 1 and 0 (255 where it is not labelled), because a prompt about one class
    says nothing about the others. :class:`OneClassInferer` reduces the network's logits in the same way.

    Random numbers come from torch's global generator, which :class:`~medsaga.handlers.TrainingState` seeds by epoch,
    so that a resumed run draws the same.

    Args:
        network: the network in training, not its wrapper of ``DistributedDataParallel``. Its predictions take a
            forward pass of the encoder and one of the decoder for each click, without gradients.
        probability: share of the batches with prompts. The others train automatic segmentation.
        max_clicks: largest number of clicks, including the first one.

    Raises:
        ValueError: the probability is not from 0 to 1, or ``max_clicks`` is below 1.

    Source:
        Medical SAM Adapter (arXiv 2304.12620), section on prompts; Segment Anything (arXiv 2304.02643), appendix A
        (clicks drawn from the error region, jitter of boxes).
    """

    def __init__(self, network: SamSegmenter, probability: float, max_clicks: int = 8) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, got {probability}.")
        if max_clicks < 1:
            raise ValueError(f"max_clicks must be at least 1, got {max_clicks}.")
        self.network = network
        self.probability = probability
        self.max_clicks = max_clicks

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
        """
        Returns:
            image (B, C, S, S), target (B, 1, S, S), and as keyword arguments for :class:`OneClassInferer` ``classes``
            (B,), ``points`` ((B, N, 2), (B, N)) and ``boxes`` (B, 4), in pixels, and ``masks`` (B, 1, m, m); none of
            them without prompts.
        """
        # neighbouring slices (B, D, C, S, S) are a batch of B D
        image, label = (batchdata[key].flatten(0, -4) for key in ("image", "label"))
        image = image.to(device, non_blocking=non_blocking, **kwargs)
        if self.probability == 0 or float(torch.rand(())) >= self.probability:
            return image, label.to(device, non_blocking=non_blocking, **kwargs), (), {}
        label = label.cpu()
        classes = torch.stack([_one_class(item, self.network.num_classes) for item in label])
        target = label == classes.view(-1, 1, 1, 1)
        prompts = self._prompts(image, target[:, 0], label[:, 0] != UNLABELLED, classes)
        target = target.to(torch.uint8).masked_fill(label == UNLABELLED, UNLABELLED)
        target = target.to(device=device, non_blocking=non_blocking)
        return image, target, (), {"classes": classes.to(device), **prompts}

    @torch.no_grad()
    def _prompts(
        self, image: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor, classes: torch.Tensor
    ) -> dict[str, Any]:
        """Prompts as an annotator gives them one after another, seeing the network's answer after each."""
        boxes = points = None
        corrections = int(torch.randint(self.max_clicks, ()))  # may be 0: then the box or click is the only prompt
        if float(torch.rand(())) < 0.5:
            boxes = torch.stack([_box_of(mask) for mask in target]).to(image.device)
        else:
            points = _with_clicks(None, target, torch.zeros_like(target))
        masks = None
        embedding = self.network.encode(image) if corrections else None
        for _ in range(corrections):
            given = None if points is None else (points[0].to(image.device), points[1].to(image.device))
            logits = self.network.decode(embedding, given, boxes, masks).float()
            masks = mask_prompt(logits.argmax(dim=1) == classes.view(-1, 1, 1).to(image.device))
            logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
            predicted = logits.argmax(dim=1).cpu() == classes.view(-1, 1, 1)
            points = _with_clicks(points, target, predicted & labelled)  # errors in unlabelled pixels are unknown
        prompts: dict[str, Any] = {} if masks is None else {"masks": masks}
        if points is not None:
            prompts["points"] = (points[0].to(image.device), points[1].to(image.device))
        if boxes is not None:
            prompts["boxes"] = boxes
        return prompts


class OneClassInferer(Inferer):
    """Inferer of a MONAI trainer for :class:`PrepareCorrectedBatch`: for prompts, the logits of the rest and the class.

    The softmax of these two logits is the softmax over all classes, with all classes but the one summed up.
    """

    def __call__(
        self,
        inputs: torch.Tensor,
        network: torch.nn.Module,
        *args: Any,
        classes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Args:
            inputs: images (B, C, S, S).
            network: to class logits (B, k, m, m).
            classes: of each image, the class that the prompts are about (B,); None without prompts.
            args, kwargs: further arguments of the network: ``points`` and ``boxes``.

        Returns:
            logits (B, k, m, m) without prompts, (B, 2, m, m) with them.
        """
        logits = network(inputs, *args, **kwargs)
        return logits if classes is None else one_against_rest(logits, classes)


def one_against_rest(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Two logits whose softmax is the probability of all other classes together, and of one class.

    Args:
        logits: (B, k, h, w).
        classes: number of the class for each item, (B,).

    Returns:
        (B, 2, h, w).
    """
    chosen = F.one_hot(classes, logits.shape[1]).bool()[:, :, None, None]
    rest = logits.masked_fill(chosen, -torch.inf).logsumexp(dim=1)
    return torch.stack([rest, logits.masked_fill(~chosen, 0).sum(dim=1)], dim=1)


def _one_class(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Number of one of the classes of a slice; of any class where it shows none."""
    classes = label.unique().long()
    classes = classes[(classes > 0) & (classes != UNLABELLED)]
    if len(classes) == 0:
        classes = torch.arange(1, num_classes)
    return classes[torch.randint(len(classes), ())]


def _with_clicks(
    points: tuple[torch.Tensor, torch.Tensor] | None, target: torch.Tensor, predicted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add to each item a click drawn from where prediction and target (B, S, S) differ; label -1 where they do not."""
    coordinates, labels = torch.zeros(len(target), 1, 2), torch.full((len(target), 1), -1.0)
    for i, wrong in enumerate(target ^ predicted):
        places = wrong.nonzero()
        if len(places):
            row, column = places[torch.randint(len(places), ())].tolist()
            coordinates[i, 0] = torch.tensor([column, row], dtype=torch.float32)
            labels[i, 0] = float(target[i, row, column])
    if points is None:
        return coordinates, labels
    return torch.cat([points[0], coordinates], dim=1), torch.cat([points[1], labels], dim=1)


def _box_of(mask: torch.Tensor) -> torch.Tensor:
    """The object's box with jitter, (4,) x0, y0, x1, y1 in pixels; a random one where there is no object."""
    size = mask.shape[-1]
    if not mask.any():
        corners = (torch.rand(2, 2) * size - 0.5).sort(dim=0).values
        return torch.cat([corners[0], corners[1]])
    (r0, c0), (r1, c1) = generate_spatial_bounding_box(mask[None])
    edges = torch.tensor([c0, r0, c1, r1]) - 0.5  # pixel centres are whole numbers here, as in SAM's prompt encoder
    sides = torch.tensor([c1 - c0, r1 - r0] * 2)
    return (edges + torch.randn(4) * (_JITTER * sides).clamp(max=20)).clamp(-0.5, size - 0.5)
