"""Which images to label next, from their embeddings and uncertainties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["k_centre", "k_medoids", "mixed"]


def k_centre(embeddings: torch.Tensor, labelled: Sequence[int], n: int) -> list[int]:
    """Greedy k-centre: repeatedly choose the image that is farthest from all chosen ones.

    The largest distance of an image to its nearest chosen one is then at most twice the smallest that is possible. With
    nothing labelled the first is the medoid, the image with the least sum of distances: a typical case to begin with
    instead of the strangest.

    Args:
        embeddings: one row an image.
        labelled: rows that are chosen already.
        n: number of further images; fewer are returned where there are no more.

    Returns:
        rows, in the order of their choice; of equally far ones the first.

    Shape:
        - embeddings: (N, E)

    Source:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, arXiv 1708.00489,
        algorithm 1; the bound: Gonzalez, 1985.
    """
    vectors = embeddings.double()
    n = min(n, len(vectors) - len(set(labelled)))
    if n < 1:
        return []
    chosen: list[int] = []
    if not labelled:
        chosen.append(int(torch.stack([_distances(vectors, i).sum() for i in range(len(vectors))]).argmin()))
    nearest = torch.full((len(vectors),), math.inf, dtype=torch.float64)
    for i in [*labelled, *chosen]:
        nearest = torch.minimum(nearest, _distances(vectors, i))
    # lower than the distance 0 of copies of a chosen image
    nearest[[*labelled, *chosen]] = -1
    while len(chosen) < n:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, _distances(vectors, chosen[-1]))
        nearest[chosen[-1]] = -1
    return chosen


def k_medoids(
    embeddings: torch.Tensor, labelled: Sequence[int], n: int, candidates: Sequence[int] | None = None
) -> list[int]:
    """Greedy k-medoids: repeatedly choose the image that most reduces every image's distance to a chosen one.

    While :func:`k_centre` chooses the most unusual image that is left, this chooses images that have many similar ones.
    With nothing labelled the first of both is the medoid.

    Args:
        embeddings: one row an image.
        labelled: rows that are chosen already.
        n: number of further images; fewer are returned where there are no more.
        candidates: rows to choose from, by default all.

    Returns:
        rows, in the order of their choice; of equally good ones the first.

    Shape:
        - embeddings: (N, E)

    Source:
        Kaufman and Rousseeuw, Finding Groups in Data, 1990, chapter 2 (the BUILD phase of PAM).
    """
    vectors = embeddings.double()
    free = [i for i in (range(len(vectors)) if candidates is None else candidates) if i not in set(labelled)]
    nearest = torch.full((len(vectors),), math.inf, dtype=torch.float64)
    for i in labelled:
        nearest = torch.minimum(nearest, _distances(vectors, i))
    chosen: list[int] = []
    while free and len(chosen) < n:
        left = [float(torch.minimum(nearest, _distances(vectors, i)).sum()) for i in free]
        chosen.append(free.pop(left.index(min(left))))
        nearest = torch.minimum(nearest, _distances(vectors, chosen[-1]))
    return chosen


def mixed(
    embeddings: torch.Tensor, uncertainty: torch.Tensor, labelled: Sequence[int], n: int, share: float = 0.25
) -> list[int]:
    """Choose, among the most uncertain images, those that represent the most unlabelled ones.

    The most uncertain ``share`` of the unlabelled images, at least ``n`` of them, is the shortlist; :func:`k_medoids`
    chooses from it. Uncertainty alone asks for the same difficulty again and again, embeddings alone for what the
    network can do already.

    Args:
        embeddings: one row an image.
        uncertainty: of each image; those of labelled ones are not looked at.
        labelled: rows that are labelled already.
        n: number of further images.
        share: of the unlabelled images that make the shortlist.

    Returns:
        rows, in the order of their choice.

    Shape:
        - embeddings: (N, E)
        - uncertainty: (N,)

    Source:
        Yang et al., Suggestive Annotation, arXiv 1706.04737, section 2.3.
    """
    unlabelled = [i for i in range(len(embeddings)) if i not in set(labelled)]
    size = min(len(unlabelled), max(n, math.ceil(share * len(unlabelled))))
    shortlist = sorted(unlabelled, key=lambda i: -float(uncertainty[i]))[:size]
    return k_medoids(embeddings, labelled, n, sorted(shortlist))


def _distances(vectors: torch.Tensor, i: int) -> torch.Tensor:
    return (vectors - vectors[i]).norm(dim=1)
