"""Training on images without labels: the network with averaged weights labels the pixels that it is sure of."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch.nn import functional as F

from medsaga.handlers import MovingAverage
from medsaga.reading.labels import UNLABELLED

__all__ = ["PreparePseudoLabels", "pseudo_labels"]


class PreparePseudoLabels(PrepareBatch):
    """``prepare_batch`` of a MONAI trainer that adds slices without labels to a batch, with pseudo labels.

    A teacher, the moving average of the network's weights, segments the weakly augmented slice; the network learns to
    give the same result for the strongly augmented slice (consistency). Pixels of which the teacher is not sure are not
    learnt from (:func:`pseudo_labels`). In half of the batches a rectangle of each slice is replaced by that of another
    slice, with its pseudo labels (CutMix). At first the teacher knows nothing, so a batch gets slices without labels
    with a probability that rises from near 0 to 1 over ``rampup`` iterations.

    A batch with prompts is not changed, because its prompts are about one class.

    Args:
        prepare: of the labelled slices, such as :class:`~medsaga.engines.PrepareCorrectedBatch`.
        average: of the weights; its network is the teacher.
        rampup: number of iterations.
        threshold: probability from which the teacher counts as sure.
        cutmix: share of the batches with CutMix.
        unlabelled: slices without labels for each labelled one, at most 1. 0.5 takes half as much additional memory.

    Raises:
        ValueError: a threshold or share that is not from 0 to 1, or no average is kept.

    Source:
        Mean teachers, arXiv 1703.01780; FixMatch, arXiv 2001.07685; CutMix for segmentation, arXiv 1906.01916; the
        ramp-up: Temporal ensembling, arXiv 1610.02242.
    """

    def __init__(
        self,
        prepare: PrepareBatch,
        average: MovingAverage,
        rampup: int = 300,
        threshold: float = 0.9,
        cutmix: float = 0.5,
        unlabelled: float = 0.5,
    ) -> None:
        for name, share in (("threshold", threshold), ("cutmix", cutmix), ("unlabelled", unlabelled)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {share}.")
        if average.momentum is None:
            raise ValueError(
                "Without an average of the weights there is no teacher: set ema_momentum, for example 0.01."
            )
        self.prepare = prepare
        self.average = average
        self.rampup = rampup
        self.threshold = threshold
        self.cutmix = cutmix
        self.unlabelled = unlabelled

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
        """
        Args:
            batchdata: ``image`` (B, C, S, S) and ``label`` (B, 1, S, S); slices without labels, strongly augmented as
                ``unlabelled`` and weakly as ``weak`` (U, C, S, S).

        Returns:
            as ``prepare``; of a batch without prompts image (B + U, C, S, S) and label, 255 where nobody is sure.
        """
        image, label, args, options = self.prepare(batchdata, device, non_blocking, **kwargs)
        if options or float(torch.rand(())) > self._share():
            return image, label, args, options
        count = max(1, round(self.unlabelled * len(batchdata["weak"])))
        strong, weak = (
            batchdata[key][:count].to(device, non_blocking=non_blocking, **kwargs) for key in ("unlabelled", "weak")
        )
        with torch.no_grad():
            logits = self.average.network(weak).float()
        logits = F.interpolate(logits, size=weak.shape[-2:], mode="bilinear", align_corners=False)
        target = pseudo_labels(logits, self.threshold).to(label.dtype)
        if len(strong) > 1 and float(torch.rand(())) < self.cutmix:
            strong, target = _cutmix(strong, target)
        return torch.cat([image, strong]), torch.cat([label, target]), args, options

    def _share(self) -> float:
        done = min(1.0, self.average.iteration / self.rampup) if self.rampup else 1.0
        return math.exp(-5 * (1 - done) ** 2)


def pseudo_labels(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """The most probable class of each pixel, or 255 where the teacher is not sure.

    A pixel is sure if its probability reaches the threshold, or the median over the pixels with its class where this is
    lower. So rare and difficult classes are learnt from, too.

    Args:
        logits: (B, k, H, W).
        threshold: probability.

    Returns:
        class numbers and 255, uint8, (B, 1, H, W).
    """
    probability, classes = logits.softmax(dim=1).max(dim=1, keepdim=True)
    of_class = [torch.where(classes == number, probability, torch.nan) for number in range(logits.shape[1])]
    least = torch.stack([values.nanmedian() for values in of_class]).nan_to_num(threshold).clamp(max=threshold)
    return torch.where(probability >= least[classes], classes, UNLABELLED).to(torch.uint8)


def _cutmix(images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace a rectangle, of a tenth to a half of the area, by that of the item before."""
    size = images.shape[-1]
    sides = [max(1, int(size * math.sqrt(0.1 + 0.4 * float(torch.rand(()))))) for _ in range(2)]
    row, column = (int(torch.randint(size - side + 1, ())) for side in sides)
    mixed, labels = images.clone(), target.clone()
    place = (..., slice(row, row + sides[0]), slice(column, column + sides[1]))
    mixed[place], labels[place] = images.roll(1, 0)[place], target.roll(1, 0)[place]
    return mixed, labels
