"""Low-rank projection of gradients: finding a basis, projecting, projecting back, and changing the basis.

Source: GaLore (arXiv 2403.03507) for the one-sided projection, MedSAGa (arXiv 2407.15042, eq. 1) for the two-sided
one, LDAdam (arXiv 2410.16103) for carrying Adam's moments into a new basis. All functions take and return 2-D tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "PROJECTIONS",
    "Basis",
    "find_basis",
    "project",
    "project_back",
    "projected_shape",
    "projected_sides",
    "rotate_moments",
]

PROJECTIONS = ("one-sided", "two-sided")

# Randomised subspace iteration: columns beyond the rank, and passes over the matrix. Each pass raises the decay of the
# singular values by two powers; one or two are enough where they decay slowly (Halko et al., arXiv 0909.4061).
_OVERSAMPLING = 8
_PASSES = 2
# Up to this size an exact SVD costs milliseconds, so an approximation would save nothing.
_EXACT_SIZE = 128


class Basis(NamedTuple):
    """Orthonormal columns to project a matrix of shape ``(m, n)`` on; a side that is ``None`` is not projected.

    Args:
        left: ``P``, shape ``(m, r)``.
        right: ``Q``, shape ``(n, r)``.
    """

    left: Tensor | None
    right: Tensor | None


def projected_sides(shape: tuple[int, int], projection: str) -> tuple[bool, bool]:
    """Which sides (left, right) of a matrix of this shape are projected."""
    if projection == "two-sided":
        return True, True
    # the shorter side, as GaLore does; a square matrix counts as tall there, so it must here to give equal results
    left = shape[0] < shape[1]
    return left, not left


def projected_shape(shape: tuple[int, int], rank: int, projection: str) -> tuple[int, int]:
    """Shape of the projection of an ``(m, n)`` matrix: ``(r, n)``, ``(m, r)`` or ``(r, r)``."""
    left, right = projected_sides(shape, projection)
    return rank if left else shape[0], rank if right else shape[1]


def project(matrix: Tensor, basis: Basis) -> Tensor:
    """Project into the low-rank space: ``P^T G``, ``G Q`` or ``P^T G Q``."""
    if basis.left is not None:
        matrix = basis.left.T @ matrix
    return matrix if basis.right is None else matrix @ basis.right


def project_back(low_rank: Tensor, basis: Basis) -> Tensor:
    """Map back from the low-rank space to ``(m, n)``: ``P N``, ``N Q^T`` or ``P N Q^T``."""
    if basis.right is not None:
        low_rank = low_rank @ basis.right.T
    return low_rank if basis.left is None else basis.left @ low_rank


def find_basis(matrix: Tensor, rank: int, projection: str, seed: int) -> Basis | None:
    """Find the basis that keeps most of a matrix: its top singular vectors.

    Exact for small matrices, by randomised subspace iteration for larger ones.

    Args:
        matrix: shape ``(m, n)``, float32 or float64.
        rank: number of singular vectors, at most ``min(m, n)``.
        projection: ``"one-sided"`` or ``"two-sided"``.
        seed: of the random start. The same matrix and seed give the same basis; torch's global generator is not used.

    Returns:
        The basis, in memory of its own, or ``None`` where the matrix has no meaningful one: it is all zero, or not
        finite, or its SVD failed.
    """
    peak = matrix.abs().amax().item()
    if not 0 < peak < float("inf"):  # also False for NaN
        return None
    try:
        u, v = _top_singular_vectors(matrix, rank, seed)
    except torch.linalg.LinAlgError:
        return None
    # an entry near the largest float may overflow in a product; one bad basis would poison every step until the next
    if not (u.isfinite().all() and v.isfinite().all()):
        return None
    left, right = projected_sides((matrix.shape[0], matrix.shape[1]), projection)
    # cloned, because a slice of the SVD's factor would keep (and save) the whole factor
    return Basis(_compact(u) if left else None, _compact(v) if right else None)


def rotate_moments(
    exp_avg: Tensor, exp_avg_sq: Tensor, old: Basis, new: Basis, betas: tuple[float, float], step: int
) -> None:
    """Carry Adam's moments from one basis into another, in place.

    With ``R = P_new^T P_old`` and ``S = Q_new^T Q_old`` (identity for a side that is not projected), a gradient known
    as ``g`` in the old basis reads ``R g S^T`` in the new one.

    Args:
        exp_avg: Adam's first moment, not bias-corrected, in the old basis.
        exp_avg_sq: Adam's second moment, likewise.
        old: basis of the moments on entry.
        new: basis of the moments on return.
        betas: Adam's decay rates.
        step: number of Adam updates in the moments, at least 1.
    """
    # Derivation, after LDAdam. Bias-corrected, the moments estimate m = E[g] and v = E[g^2] of the entries of g.
    # For g' = R g S^T linearity gives m' = R m S^T. Taking the entries of g as uncorrelated, their variances v - m^2
    # add up with squared weights, and E[g'^2] = Var[g'] + E[g']^2:
    #     v' = (R*R) (v - m^2) (S*S)^T + (m')^2          (* is element-wise)
    # The first moment is linear, so its bias correction cancels; the second needs both corrections.
    rotation = Basis(*(None if a is None else a.T @ b for a, b in zip(old, new)))
    spread = Basis(*(None if r is None else r.square() for r in rotation))
    correction1, correction2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    mean_sq = (exp_avg / correction1).square()
    second = exp_avg_sq / correction2
    # v lags behind m^2 while gradients grow, then v - m^2 is negative and v' may come out near or below 0. LDAdam takes
    # the absolute value, which leaves entries with m' >> sqrt(v') and so a jump of many learning rates. Instead no
    # entry may move further than the furthest did before (or than 1 learning rate); a refresh that finds the same
    # subspace then still changes nothing.
    furthest_sq = (mean_sq / second).nan_to_num(nan=0.0).amax().clamp(min=1.0)
    exp_avg.copy_(project(exp_avg, rotation))
    new_mean_sq = (exp_avg / correction1).square()
    second = project(second - mean_sq, spread) + new_mean_sq
    exp_avg_sq.copy_(torch.maximum(second, new_mean_sq / furthest_sq).mul_(correction2))


def _compact(vectors: Tensor) -> Tensor:
    return vectors.clone(memory_format=torch.contiguous_format)


def _top_singular_vectors(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Top left and right singular vectors, shapes ``(m, rank)`` and ``(n, rank)``."""
    width = rank + _OVERSAMPLING
    if min(matrix.shape) <= max(_EXACT_SIZE, 2 * width):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], vh[:rank].T
    # drawn on the CPU, so that every device starts alike
    generator = torch.Generator("cpu").manual_seed(seed)
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype, device="cpu")
    start = start.to(matrix.device)
    span = _orthonormal(matrix @ start)
    for _ in range(_PASSES):
        span = _orthonormal(matrix @ _orthonormal(matrix.T @ span))
    u, _, vh = torch.linalg.svd(span.T @ matrix, full_matrices=False)
    return span @ u[:, :rank], vh[:rank].T


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q
