"""Map what a request marks from voxels of the image file to the slices of the prepared image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import HTTPException
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from scipy.ndimage import affine_transform

from medsaga.inferers import SlicePrompt

__all__ = ["Placing", "slice_prompts"]

# A click is taken as the middle of a wrong region, so close neighbours on a line add little. Each click on a wrong
# pixel takes up to 0.08 s, so this many along a line are answered in about a second.
_OF_A_SCRIBBLE = 20


class Placing:
    """Where the voxels of a prepared image lie in the image file, and the other way round.

    Args:
        image: preprocessed, (C, H, W) or (C, H, W, D), with its affine and the file's.

    Attributes:
        rank: number of axes.
        flat: whether the file has one slice, which some clients count and others do not.
    """

    def __init__(self, image: MetaTensor) -> None:
        self.rank = rank = image.ndim - 1
        ours, files = (to_affine_nd(rank, np.asarray(a)) for a in (image.affine, image.meta["original_affine"]))
        self._to_image = np.linalg.inv(ours) @ files
        self._to_file = np.linalg.inv(files) @ ours
        self._shape = tuple(image.shape[1:])
        self._last = np.array(self._shape) - 1
        self.flat = rank == 2 or image.meta["spatial_shape"][2] == 1

    def in_image(self, voxels: np.ndarray) -> np.ndarray:
        """Positions (N, rank) in the prepared image of positions in the file."""
        return (np.pad(voxels, ((0, 0), (0, 1)), constant_values=1) @ self._to_image.T)[:, : self.rank]

    def in_file(self, positions: Sequence[tuple[float, float, int]]) -> np.ndarray:
        """Voxels (N, rank) of the file, whole numbers, at rows, columns and slices of the prepared image: the nearest
        pixels of it, which clicks are taken for."""
        own = np.rint(np.asarray(positions, dtype=float)[:, : self.rank]).clip(0, self._last)
        found = (np.pad(own, ((0, 0), (0, 1)), constant_values=1) @ self._to_file.T)[:, : self.rank]
        return np.rint(found).astype(int)

    def mask_in_image(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the file, bool (W, H) or (W, H, 1 or D), on the prepared image."""
        mask, rank = mask.reshape(mask.shape[: self.rank]), self.rank
        turn, start = self._to_file[:rank, :rank], self._to_file[:rank, rank]
        axes = np.abs(turn).argmax(axis=0)
        turned = np.flip(mask.transpose(axes), [axis for axis, own in enumerate(axes) if turn[own, axis] < 0])
        if turned.shape == self._shape and np.allclose(turn, np.rint(turn), atol=1e-3):
            return turned
        return affine_transform(mask, turn, start, output_shape=self._shape, order=0)  # it has been resampled

    def slices(self, indices: Sequence[int]) -> tuple[int, list[int]]:
        """The file's axis across the slices of a prepared volume, and their indices along it."""
        axis = int(np.abs(self._to_file[:3, 2]).argmax())
        return axis, [int(voxel[axis]) for voxel in self.in_file([(0, 0, index) for index in indices])]


def slice_prompts(request: dict[str, Any], image: MetaTensor) -> dict[int, SlicePrompt]:
    """Prompts by slice of the preprocessed image.

    Args:
        request: with ``foreground``, ``background``, ``scribbles`` and ``roi``, see
            :class:`~lib.infers.prompted.PromptedTask`.
        image: preprocessed, (C, H, W) or (C, H, W, D), with its affine and the file's.

    Raises:
        HTTPException: 422 when a prompt has another number of coordinates than the image, or one that is no number.
    """
    placing = Placing(image)
    rank = placing.rank

    def voxels(points: Any, expected: str) -> np.ndarray:
        try:
            array = np.asarray(points, dtype=float).reshape(len(points), -1 if len(points) else rank)
        except (TypeError, ValueError) as err:
            raise HTTPException(422, f"{expected}; got {points}.") from err
        if placing.flat and array.shape[1] in (2, 3):
            array = np.pad(array[:, :2], ((0, 0), (0, rank - 2)))
        if array.shape[1] != rank:
            raise HTTPException(422, f"{expected}; got {points}.")
        return array

    inside, outside, boxes = defaultdict(list), defaultdict(list), {}
    for found, name in ((inside, "foreground"), (outside, "background")):
        points = voxels(request.get(name) or [], f"{name} must be a list of points, each of {rank} voxel indices")
        lines = [
            scribble["points"] for scribble in request.get("scribbles") or [] if scribble["inside"] == (found is inside)
        ]
        along = [_along(voxels(line, f"scribbles must have points, each of {rank} voxel indices")) for line in lines]
        for voxel in placing.in_image(np.concatenate([points, *along])):
            found[round(voxel[2]) if rank == 3 else 0].append((voxel[0], voxel[1]))
    numbers = np.ravel(request.get("roi") or []).tolist()
    for start in range(0, len(numbers), 6):
        ends = list(zip(*[iter(numbers[start : start + 6])] * 2))  # by axis
        corners = voxels(
            list(zip(*ends)) or [()],
            f"roi must have {2 * rank} numbers for each box: first and last voxel of each axis",
        )
        corners = placing.in_image(corners)
        limit = np.array(image.shape[1:]) - 1
        low, high = corners.min(axis=0).clip(0, limit), corners.max(axis=0).clip(0, limit)
        first, last = (round(low[2]), round(high[2])) if rank == 3 else (0, 0)
        for index in range(first, last + 1):
            boxes[index] = (low[0], low[1], high[0], high[1])
    return {
        index: SlicePrompt(tuple(inside[index]), tuple(outside[index]), boxes.get(index))
        for index in sorted({*inside, *outside, *boxes})
    }


def _along(line: np.ndarray) -> np.ndarray:
    """Voxels along a line, at steps of a voxel or, of a long one, so many evenly spread; the middle one first, which is
    the likeliest to lie in the middle of the object."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    reached = np.concatenate([[0.0], np.cumsum(steps)])
    count = min(_OF_A_SCRIBBLE, int(reached[-1]) + 1)
    wanted = np.linspace(0, reached[-1], count) if count > 1 else np.zeros(1)
    points = np.stack([np.interp(wanted, reached, axis) for axis in line.T], axis=1)
    points = np.array(list(dict.fromkeys(map(tuple, np.rint(points)))))
    return points[np.argsort(np.abs(np.arange(len(points)) - (len(points) - 1) / 2), kind="stable")]
