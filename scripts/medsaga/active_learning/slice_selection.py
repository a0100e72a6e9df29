"""Which slices to label next."""

from __future__ import annotations

import torch

__all__ = ["class_stratified", "power_choice"]


def power_choice(scores: torch.Tensor, n: int, beta: float, generator: torch.Generator) -> list[int]:
    """Draw ``n`` items without replacement, with probabilities in proportion to ``scores ** beta``.

    With a large ``beta`` these are the items with the highest scores, with 0 any items. The noise keeps neighbours,
    which have similar scores, from being chosen together.

    Args:
        scores: (N,), at least 0.
        n: number of items; fewer where there are fewer.
        beta: exponent.
        generator: of the noise.

    Returns:
        rows, in the order of their choice.

    Source:
        Power acquisition: Kirsch et al., Stochastic Batch Acquisition, arXiv 2106.12059 (Gumbel noise on log scores).
    """
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
    noisy = beta * scores.double().clamp(min=1e-12).log() + gumbel
    return noisy.topk(min(n, len(scores))).indices.tolist()


def class_stratified(scores: torch.Tensor, n: int, beta: float, generator: torch.Generator) -> list[int]:
    """Choose for each class in turn a slice of which the network is unsure about that class.

    Args:
        scores: (N, k) as of :func:`~medsaga.active_learning.class_uncertainty`.
        n: number of slices; fewer where there are fewer.
        beta: see :func:`power_choice`. Small in the first rounds, when uncertainties mean little, larger later.
        generator: of the noise.

    Returns:
        rows, in the order of their choice.

    Source:
        The idea is ClaSP PE's (arXiv 2601.13677): predictive entropy stratified by class, with power noise that decays
        over the rounds; there patches of nnU-Net, here slices.
    """
    rankings = [power_choice(scores[:, number], len(scores), beta, generator) for number in range(1, scores.shape[1])]
    chosen: list[int] = []
    while len(chosen) < min(n, len(scores)):
        for ranking in rankings:
            if len(chosen) == n:
                break
            while ranking and ranking[0] in chosen:
                ranking.pop(0)
            if ranking:
                chosen.append(ranking.pop(0))
    return chosen
