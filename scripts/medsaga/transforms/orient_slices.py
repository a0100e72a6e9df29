"""Volumes turned so that their slices lie along the last axis, and back to exactly the file's own grid."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys

__all__ = ["ALL_PLANES", "AXES", "PLANES", "OrientSlicesd", "nearest_plane"]

logger = logging.getLogger(__name__)

# direction of growing row, column and slice numbers in each plane: an axis of RAS space, and its sign
AXES = {
    "axial": ((1, -1), (0, -1), (2, 1)),  # PLS
    "coronal": ((2, -1), (0, -1), (1, -1)),  # ILP
    "sagittal": ((2, -1), (1, -1), (0, -1)),  # IPL
}
PLANES = ("auto", *AXES)
ALL_PLANES = "all"
_PLANE_ACROSS = {2: "axial", 1: "coronal", 0: "sagittal"}  # by the RAS axis that its slices are stacked along

# a volume was acquired in the plane whose slices are at least this many times as far apart as its pixels
_THICK = 1.5

# two ways to turn a volume are equally good when their sums of three direction cosines differ by less than this: at 45°
# the choice must not depend on rounding, and a label whose header differs slightly from its image's must be turned as
# the image is
_TIE = 1e-3
_LABEL_TIE = 0.1


class OrientSlicesd(MapTransform, InvertibleTransform):
    """Permute and flip axes so that rows, columns and slices of a plane come in this order, as on a viewer's screen.

    Axial slices have rows to posterior, columns to left, slices to superior (``PLS``); coronal ones rows to inferior,
    columns to left, slices to posterior (``ILP``); sagittal ones rows to inferior, columns to posterior, slices to
    left (``IPL``). No voxel is interpolated: an oblique image is turned to the nearest of these, and its affine says
    where it is. The inverse restores the file's order of voxels and its affine bit for bit, because it undoes the
    permutation and flips that were recorded. (MONAI's ``Orientationd`` derives them again from the affine, and at 45°
    it finds others.)

    2-D images are turned in the plane in which they lie; ``plane`` does not apply to them.

    Args:
        keys: MetaTensors (C, W, H) or (C, W, H, D) with affines from voxels to RAS. The first key that the data has,
            the image, decides on the plane; the others, its labels, are turned to it by their own affines.
        plane: ``axial``, ``coronal``, ``sagittal``, or ``auto``: the plane in which a volume was acquired. Its slices
            are stacked along an axis of one voxel, else along one whose spacing is at least 1.5 times that of both
            others; otherwise it is axial. A plane other than axial is logged, with the file's name. None is for 2-D
            images and single slices, and refuses volumes. ``all`` turns as ``auto`` does; the other planes are cut from
            the result (:func:`~medsaga.transforms.cut_planes.cuts`).
        allow_missing_keys: skip keys that the data does not have.

    Raises:
        ValueError: another ``plane``; naming the file, an image with other than 2 or 3 axes, or an affine that is not
            invertible.
    """

    def __init__(self, keys: KeysCollection, plane: str | None = "auto", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if plane not in (None, ALL_PLANES, *PLANES):
            known = ", ".join((*PLANES, ALL_PLANES))
            raise ValueError(f"plane is {plane!r}; it must be {known}, or null for 2-D images.")
        self.plane = "auto" if plane == ALL_PLANES else plane

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        plane, image_axes = None, None
        for key in self.key_iterator(out):
            image = out[key]
            shape, affine = tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64)
            name = image.meta.get("filename_or_obj", key)
            if len(shape) not in (2, 3):
                raise ValueError(f"{name}: it has {len(shape)} axes {shape}; expected an image of 2 or a volume of 3.")
            # 2-D: a slice across the third axis
            directions = _directions(affine, len(shape), name)
            axes = _nearest_axes(directions, image_axes)
            if len(shape) == 2:
                own_plane = _PLANE_ACROSS[axes[2]]
            else:
                plane = plane or self._plane_of(shape, affine, axes, name)
                own_plane = plane
            image_axes = image_axes or axes
            targets = AXES[own_plane][: len(shape)]
            permutation = [axes.index(axis) for axis, _ in targets]
            flips = [i for i, (axis, sign) in enumerate(targets) if sign * directions[axis, permutation[i]] < 0]
            out[key] = self._turned(image, permutation, flips)
        return out

    def _plane_of(self, shape: tuple[int, ...], affine: np.ndarray, axes: tuple[int, ...], name: str) -> str:
        """The plane that is asked for or was acquired; ``axes`` are the RAS axes that the volume's own run along."""
        if self.plane is None and min(shape) > 1:
            raise ValueError(
                f"{name}: it is a volume of shape {shape}; expected a 2-D image, as this bundle's plane is null."
            )
        if self.plane not in (None, "auto"):
            return self.plane
        across = _slice_axis(shape, np.linalg.norm(affine[:3, :3], axis=0))
        plane = "axial" if across is None else _PLANE_ACROSS[axes[across]]
        if plane != "axial":
            logger.warning(
                f"{name}: it was acquired in {plane} slices and is used so; plane=axial would cut across them."
            )
        return plane

    def _turned(self, image: MetaTensor, permutation: list[int], flips: list[int]) -> MetaTensor:
        affine = image.affine.clone()
        turned = _permuted(image, permutation).flip([1 + axis for axis in flips])
        recorded = {"permutation": permutation, "flips": flips, "affine": affine}
        turned = self.push_transform(turned, orig_size=tuple(image.shape[1:]), extra_info=recorded)
        columns = affine[:, [*permutation, *range(len(permutation), len(affine))]]
        for axis in flips:
            columns[:, -1] += columns[:, axis] * (turned.shape[1 + axis] - 1)
            columns[:, axis] *= -1
        turned.affine = columns
        return turned

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            recorded = self.pop_transform(out[key])[TraceKeys.EXTRA_INFO]
            restored = out[key].flip([1 + axis for axis in recorded["flips"]])
            out[key] = _permuted(restored, np.argsort(recorded["permutation"]).tolist())
            out[key].affine = recorded["affine"]
        return out


def nearest_plane(affine: np.ndarray) -> str:
    """The plane of slices that are stacked along the last axis of a volume: that nearest to its affine (4, 4)."""
    return _PLANE_ACROSS[_nearest_axes(_directions(affine, 3, "a volume"), None)[2]]


def _permuted(image: MetaTensor, permutation: list[int]) -> MetaTensor:
    return image.permute(0, *(1 + axis for axis in permutation))


def _directions(affine: np.ndarray, rank: int, name: object) -> np.ndarray:
    """Unit vectors (3, 3) in RAS along the axes of an image; a 2-D one's third axis is at right angles to it."""
    directions = to_affine_nd(3, affine)[:3, :3]
    if rank == 2:
        directions[:, 2] = np.cross(directions[:, 0], directions[:, 1])
    lengths = np.linalg.norm(directions, axis=0)
    with np.errstate(all="ignore"):
        directions = directions / lengths
        volume = abs(np.linalg.det(directions))
    if not volume > 1e-3:
        raise ValueError(f"{name}: its affine {affine.tolist()} does not span the image's axes; it must be invertible.")
    return directions


def _nearest_axes(directions: np.ndarray, preferred: tuple[int, ...] | None) -> tuple[int, ...]:
    """The nearest RAS axis of each axis of an image, each used once, by the largest sum of direction cosines.

    No cosine of the best choice is near 0 (for a rotation none is below 0.45), so the signs need no rule for ties.
    """
    cosines = np.abs(directions)
    sums = {axes: sum(cosines[axis, i] for i, axis in enumerate(axes)) for axes in itertools.permutations(range(3))}
    best = max(sums.values())
    if preferred is not None and sums[preferred] > best - _LABEL_TIE:
        return preferred
    return next(axes for axes, value in sums.items() if value > best - _TIE)


def _slice_axis(shape: tuple[int, ...], spacing: np.ndarray) -> int | None:
    """The axis along which a volume's slices were acquired, None where its shape and spacing do not tell."""
    single = [axis for axis, length in enumerate(shape) if length == 1]
    if len(single) == 1:
        return single[0]
    thick = [a for a in range(3) if all(spacing[a] >= _THICK * (1 - 1e-6) * spacing[b] for b in range(3) if b != a)]
    return thick[0] if thick else None
