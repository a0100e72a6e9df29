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
    "align_signs",
    "find_basis",
    "has_exact_basis",
    "project",
    "project_back",
    "projected_shape",
    "projected_sides",
    "rotate_moments",
    "sketch_basis",
]

PROJECTIONS = ("one-sided", "two-sided")

# Randomised subspace iteration: columns beyond the rank, and passes over the matrix. Each pass raises the decay of the
# singular values by two powers; two are enough where they decay slowly (Halko et al., arXiv 0909.4061).
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


def has_exact_basis(shape: tuple[int, int], rank: int) -> bool:
    """Whether a matrix is so small that its basis is found by a full SVD."""
    return min(shape) <= max(_EXACT_SIZE, 2 * (rank + _OVERSAMPLING))


def find_basis(matrix: Tensor, rank: int, projection: str, seed: int, old: Basis | None = None) -> Basis | None:
    """Find the basis that keeps most of a matrix: its top singular vectors.

    Exact for small matrices; for larger ones by randomised subspace iteration, which starts from the old basis and a
    few random directions.

    Args:
        matrix: shape ``(m, n)``, float32 or float64.
        rank: number of singular vectors, at most ``min(m, n)``.
        projection: ``"one-sided"`` or ``"two-sided"``.
        seed: of the random directions. The same matrix, seed and old basis give the same basis; torch's global
            generator is not used.
        old: the basis so far, if any.

    Returns:
        The basis, in memory of its own, or ``None`` where the matrix has no meaningful one: it is all zero, or not
        finite, or its decomposition failed.
    """
    return _usable_basis(matrix, rank, projection, seed, old, _PASSES)


def sketch_basis(matrix: Tensor, rank: int, projection: str, seed: int) -> Basis | None:
    """A first basis for the price of one projection: random combinations of the matrix's rows or columns.

    It keeps more of the matrix than any fixed directions would, and less than its singular vectors. All parameters need
    a basis in the very first step; this keeps that step short until each one's :func:`find_basis` has its turn.

    Args and returns as for :func:`find_basis`.
    """
    return _usable_basis(matrix, rank, projection, seed, None, 0)


def align_signs(new: Basis, old: Basis) -> Basis:
    """Flip each vector of a new basis to the same side as the old vector with the same index.

    The sign of a singular vector is arbitrary: without this, the meaning of moments kept from the old basis would
    depend on rounding.
    """
    return Basis(*(None if a is None else a * torch.where((a * b).sum(0) < 0, -1.0, 1.0) for a, b in zip(new, old)))


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


def _usable_basis(
    matrix: Tensor, rank: int, projection: str, seed: int, old: Basis | None, passes: int
) -> Basis | None:
    lowest, highest = torch.aminmax(matrix)  # in one pass, and without a copy
    if not 0 < max(-lowest.item(), highest.item()) < float("inf"):  # also False for NaN
        return None
    shape = (matrix.shape[0], matrix.shape[1])
    left, right = projected_sides(shape, projection)
    try:
        if has_exact_basis(shape, rank):
            u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
            # cloned, because a slice of the SVD's factor would keep (and save) the whole factor
            basis = Basis(_compact(u[:, :rank]) if left else None, _compact(vh[:rank].T) if right else None)
        elif left:
            span = _dominant_columns(matrix, rank, seed, None if old is None else old.left, passes)
            basis = Basis(span, _orthonormal(matrix.T @ span) if right else None)
        else:
            basis = Basis(None, _dominant_columns(matrix.T, rank, seed, None if old is None else old.right, passes))
    except torch.linalg.LinAlgError:
        return None
    # an entry near the largest float may overflow in a product; one bad basis would poison every step until the next
    if not all(vectors is None or vectors.isfinite().all() for vectors in basis):
        return None
    return basis if old is None else align_signs(basis, old)


def _dominant_columns(matrix: Tensor, rank: int, seed: int, old: Tensor | None, passes: int) -> Tensor:
    """Top left singular vectors, shape ``(m, rank)``, or after no pass a sketch of their space."""
    width = rank + (_OVERSAMPLING if passes else 0)
    # drawn on the CPU, so that every device starts alike
    generator = torch.Generator("cpu").manual_seed(seed)
    size = width if old is None else width - rank
    start = torch.randn(matrix.shape[1] if old is None else matrix.shape[0], size, generator=generator, device="cpu")
    start = start.to(matrix)
    if old is None:
        span = _orthonormal(matrix @ start)
    else:
        # scaled to the old basis's length, so that the orthonormalisation loses neither
        span = _orthonormal(torch.cat([old, start / matrix.shape[0] ** 0.5], dim=1))
    for _ in range(passes):
        span = _orthonormal(matrix @ _unit_size(matrix.T @ span))
    if not passes:
        return span
    # within the span, the singular vectors are the eigenvectors of a small Gram matrix
    half = _unit_size(matrix.T @ span)
    _, vectors = torch.linalg.eigh(half.T @ half)
    return _compact(span @ vectors[:, -rank:].flip(1))


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _unit_size(columns: Tensor) -> Tensor:
    # or the next product of a tiny or huge matrix would leave float32's range
    return columns.div_(columns.abs().amax() * columns.shape[0] ** 0.5)
