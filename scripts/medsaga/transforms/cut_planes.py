"""Volumes cut in all planes in which their pixels are near square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .orient_slices import AXES, nearest_plane

__all__ = ["Cut", "cuts"]

_SQUARE = 3.0  # spacing of rows and columns differs at most by this factor
_LEAST = 8  # voxels along each side of a slice


@dataclass(frozen=True)
class Cut:
    """One way to cut a volume: a permutation of its last three axes and flips, so that slices lie along the last.

    Args:
        plane: ``axial``, ``coronal`` or ``sagittal``.
        permutation: of the last three axes, from rows, columns and slices as they are to those of the plane.
        flips: those of the three axes, after the permutation, that run the other way.
    """

    plane: str
    permutation: tuple[int, int, int]
    flips: tuple[int, ...]

    def turned(self, volume: torch.Tensor) -> torch.Tensor:
        """The volume (..., H, W, D) with rows, columns and slices of the plane: a view, or a flipped copy."""
        axes = range(volume.ndim - 3)
        turned = volume.permute(*axes, *(len(axes) + axis for axis in self.permutation))
        return turned.flip([len(axes) + axis for axis in self.flips]) if self.flips else turned

    def add(self, volume: torch.Tensor, slices: torch.Tensor, start: int) -> None:
        """Add slices of the plane to a volume that is not turned, in place.

        Args:
            volume: (k, H, W, D).
            slices: (k, h, w, n), neighbours, as they lie in the turned volume.
            start: number of the first of them.
        """
        view = volume.permute(0, *(1 + axis for axis in self.permutation))
        count = slices.shape[-1]
        first = view.shape[-1] - start - count if 2 in self.flips else start
        view[..., first : first + count] += slices.flip([1 + axis for axis in self.flips]).to(volume.dtype)


def cuts(shape: tuple[int, int, int], affine: np.ndarray | None = None) -> list[Cut]:
    """The planes to cut a volume in, after :class:`~medsaga.transforms.OrientSlicesd`: its own first.

    Other planes are left out where their pixels would be more than three times as long as wide, as in planes across the
    slices of a usual CT, and where a side would have fewer than eight voxels.

    Args:
        shape: of the volume.
        affine: from its voxels to RAS, (4, 4); None takes axial slices and equal spacing.
    """
    own = "axial" if affine is None else nearest_plane(np.asarray(affine, dtype=np.float64))
    spacing = np.ones(3) if affine is None else np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    found = []
    for plane in (own, *(plane for plane in AXES if plane != own)):
        places = {axis: (place, sign) for place, (axis, sign) in enumerate(AXES[own])}
        permutation = tuple(places[axis][0] for axis, _ in AXES[plane])
        flips = tuple(new for new, (axis, sign) in enumerate(AXES[plane]) if places[axis][1] != sign)
        rows, columns, _ = permutation
        sides = spacing[[rows, columns]]
        usable = sides.max() <= _SQUARE * sides.min() and min(shape[rows], shape[columns]) >= _LEAST
        if plane == own or usable:
            found.append(Cut(plane, permutation, flips))
    return found
