"""How unsure a network is of an image: by its answer's entropy, and by how its answers to altered images differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .slices import MAX_SLICES, image_area, slice_batches

__all__ = ["class_uncertainty", "disagreement", "mean_entropy", "unsure_pixels"]

Network = Callable[[torch.Tensor], torch.Tensor]

# An annotator's answer would not change under these: 11 degrees, a quarter more or less contrast.
_MAX_ANGLE = 0.2  # radians
_MAX_LOG_GAMMA = 0.25


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the classes, (b, k, m, m) → (b, m, m), in units of that of k equally likely classes."""
    return torch.special.entr(probabilities).sum(dim=1) / math.log(probabilities.shape[1])


@torch.no_grad()
def class_uncertainty(logits: torch.Tensor) -> torch.Tensor:
    """How unsure a network is of each class in each slice.

    Of class c: the sum over pixels of the entropy of their classes, each pixel counting by its probability of being c.
    So a class that is small in a slice, or that the network considers but does not find there, has a score of its own.

    Args:
        logits: (b, k, m, m).

    Returns:
        (b, k), in pixels of the logits, the background first.
    """
    probabilities = logits.float().softmax(dim=1)
    return (_entropy(probabilities)[:, None] * probabilities).sum(dim=(2, 3))


@torch.no_grad()
def unsure_pixels(logits: torch.Tensor) -> torch.Tensor:
    """How much of each slice the network is unsure of, (b, k, m, m) → (b,).

    The sum over pixels of which :func:`mean_entropy` is the mean, in pixels of the logits: each pixel counts by its
    entropy and by its probability of being foreground. In :func:`class_uncertainty` it is the probability of one class.
    """
    return class_uncertainty(logits)[:, 1:].sum(dim=1)


@torch.no_grad()
def mean_entropy(
    network: Network, image: torch.Tensor, image_size: int, batch_size: int = 8, max_slices: int = MAX_SLICES
) -> float:
    """Entropy of the predicted classes, mean over all pixels, each counting by its probability of being foreground.

    With p the classes' probabilities of a pixel, class 0 the background, and H their entropy, the score is
    Σ (1 - p₀) H(p) / Σ (1 - p₀). Without the weight, the score would depend more on the amount of surface and
    background than on the network's uncertainty. It is taken at the logits' resolution, over the image without its
    padding.

    Args:
        network: (b, C, S, S) → class logits (b, k, m, m), without dropout.
        image: preprocessed image or volume, intensities in [0, 1].
        image_size: side S of the network's input, in pixels.
        batch_size: slices a batch.
        max_slices: of a volume, evenly spaced.

    Returns:
        between 0, certain of all it sees, and 1, all classes equally likely.

    Shape:
        - image: (C, H, W) or (C, H, W, D)

    Source:
        Entropy sampling: Settles, Active Learning Literature Survey (2009), section 3.1, here of each pixel.
    """
    mean = _WeightedMean()
    for batch in slice_batches(image, image_size, batch_size, max_slices):
        probabilities = network(batch).float().softmax(dim=1)
        inside = image_area(tuple(image.shape[1:3]), image_size, probabilities.shape[-1])
        mean.add(_entropy(probabilities), 1 - probabilities[:, 0], inside)
    return mean.value


@torch.no_grad()
def disagreement(
    network: Network,
    image: torch.Tensor,
    image_size: int,
    batch_size: int = 8,
    passes: int = 4,
    seed: int = 0,
    max_slices: int = MAX_SLICES,
) -> float:
    """Mutual information between the predicted class and how the image was altered, mean over all pixels.

    The image is seen as it is and ``passes - 1`` times turned by up to 11 degrees and with another gamma; each answer
    is turned back. With p the classes' probabilities of a pixel and E the mean over the passes, the score of a pixel is
    H(E p) - E H(p): high where the answers are sure and contradict each other, zero where they agree, even in doubt.
    Pixels count by their probability of being foreground, as in :func:`mean_entropy`. There are no mirrored passes,
    because classes may be sides of the body.

    Args:
        network: (b, C, S, S) → class logits (b, k, m, m), without dropout.
        image: preprocessed image or volume, intensities in [0, 1].
        image_size: side S of the network's input, in pixels.
        batch_size: slices a batch.
        passes: number of answers compared, at least 2.
        seed: of the alterations; they are the same for all images, so that scores compare.
        max_slices: of a volume, evenly spaced.

    Returns:
        between 0 and 1, in units of the entropy of k equally likely classes.

    Shape:
        - image: (C, H, W) or (C, H, W, D)

    Source:
        BALD: Houlsby et al., arXiv 1112.5745, equation 2; with test-time augmentation for the posterior's draws, as in
        Wang et al., arXiv 1807.07356.
    """
    views = [(0.0, 1.0), *_draw_views(passes - 1, seed)]
    result = _WeightedMean()
    for batch in slice_batches(image, image_size, batch_size, max_slices):
        mean = entropy = 0.0
        seen = image_area(tuple(image.shape[1:3]), image_size, image_size).float()[None, None]
        inside = torch.ones((), dtype=torch.bool)
        for angle, gamma in views:
            altered = _rotate(batch, angle, "zeros").clamp(0, 1) ** gamma
            probabilities = network(altered).float().softmax(dim=1)
            probabilities = _rotate(probabilities, -angle, "border")
            mean = mean + probabilities / len(views)
            entropy = entropy + _entropy(probabilities) / len(views)
            # without the corners that a turned image lost, and the padding
            visible = F.adaptive_avg_pool2d(_rotate(_rotate(seen, angle, "zeros"), -angle, "zeros"), mean.shape[-1])
            inside = inside & (visible[0, 0] > 0.9)
        result.add(_entropy(mean) - entropy, 1 - mean[:, 0], inside)
    return max(0.0, result.value)  # its rounding may be below 0


class _WeightedMean:
    """Mean of maps that come in batches."""

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, values: torch.Tensor, weights: torch.Tensor, inside: torch.Tensor) -> None:
        """Values and weights (b, m, m), where ``inside`` (m, m) is true."""
        inside = inside.to(values.device)
        values, weights = values[:, inside].double(), weights[:, inside].double()
        self.total += float((values * weights).sum())
        self.weight += float(weights.sum())

    @property
    def value(self) -> float:
        """0 where there is no weight at all."""
        return self.total / self.weight if self.weight > 0 else 0.0


def _draw_views(number: int, seed: int) -> list[tuple[float, float]]:
    """Angles in radians and gammas."""
    if number < 1:
        raise ValueError(f"passes={number + 1}: it must be at least 2, because one answer cannot disagree with itself")
    draws = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return [(_MAX_ANGLE * float(a), math.exp(_MAX_LOG_GAMMA * float(g))) for a, g in draws]


def _rotate(images: torch.Tensor, angle: float, padding: str) -> torch.Tensor:
    """Turn (b, c, m, m) about the centre, in radians."""
    if angle == 0:
        return images
    cos, sin = math.cos(angle), math.sin(angle)
    theta = images.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
