"""Read images and labels, or refuse them by name."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage, MapTransform, ResampleToMatch
from monai.utils import convert_to_dst_type

from medsaga.reading import Grid, ImageFile, ReadingError, name_without_suffix, open_image
from medsaga.reading.label_forms import open_label
from medsaga.reading.labels import UNLABELLED, check_labelled_slices
from medsaga.reading.reader import MedicalImageReader
from medsaga.reading.sequences import sequence_files

__all__ = ["ReadImaged"]

logger = logging.getLogger(__name__)

_SAME = 0.1  # largest distance in voxels of two grids of one shape that count as equal


class ReadImaged(MapTransform):
    """Dictionary transform from paths to images with channels first, float32, instead of MONAI's ``LoadImaged``.

    Where one reader refuses a file, ``LoadImaged`` tries MONAI's other readers. This transform refuses every file that
    :func:`~medsaga.reading.open_image` refuses.

    An image is a path or a list of paths, one a sequence, which become channels. A sequence on another grid than the
    first is resampled to it, linearly and with a notice; voxels that it does not cover get its nearest values. A label
    has any form that :func:`~medsaga.reading.label_forms.open_label` takes.

    Args:
        keys: of paths.
        label_keys: those of ``keys`` whose values are class numbers.
        allow_missing_keys: skip keys that a case does not have.
        class_names: of all classes, background first; needed for labels that have a channel, a file, a segment or a
            region for each class.
        sequences: ends of the names of files, one a sequence: an image given by the path of the first is read with
            those beside it, see :func:`~medsaga.reading.sequences.sequence_files`. None: a path is the whole image.
        labelled_slices_key: of the numbers of the slices that are labelled, along the third axis of the file; all other
            slices of a volume are not labelled (255). Data without this key are labelled everywhere.
        image_key: of the image on which labels without a grid of their own (DICOM SEG, RTSTRUCT) are drawn.

    Returns (of a call):
        the data with a MetaTensor (C, W, H) or (C, W, H, D) for each path: affine in RAS, and in its meta
        ``filename_or_obj``, of several files the first, and ``case``, the case's name: ``name`` of the data where it
        has one, else the file's.

    Raises:
        FileNotFoundError, ReadingError: naming the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = ("label",),
        allow_missing_keys: bool = False,
        class_names: Sequence[str] | None = None,
        sequences: Sequence[str] | None = None,
        image_key: str = "image",
        labelled_slices_key: str = "labelled_slices",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)
        self.class_names = class_names
        self.sequences = sequences
        self.image_key = image_key
        self.labelled_slices_key = labelled_slices_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in sorted(self.key_iterator(out), key=lambda key: key in self.label_keys):  # images first
            out[key] = self._label(out[key], out) if key in self.label_keys else self._image(out[key])
            out[key].meta["case"] = str(data.get("name") or name_without_suffix(out[key].meta["filename_or_obj"]))
        return out

    def _files(self, value: Any) -> list[str]:
        if isinstance(value, list | tuple):
            return [str(path) for path in value]
        return sequence_files(value, self.sequences) if self.sequences else [str(value)]

    def _image(self, value: Any) -> MetaTensor:
        files = self._files(value)
        image, *others = channels = [_tensor(path, open_image(path)) for path in files]
        if not others:
            return image
        for channel, path in zip(channels, files):
            if len(channel) != 1:
                raise ReadingError(f"{path}: it has {len(channel)} channels; each of {len(files)} files must have one.")
        matched = [image, *(_on_grid_of(image, other) for other in others)]
        return convert_to_dst_type(torch.cat([channel.as_tensor() for channel in matched]), image)[0]

    def _label(self, value: Any, data: Mapping[Hashable, Any]) -> MetaTensor:
        image = data.get(self.image_key)
        if image is None:
            name, grid = "", None
        elif isinstance(image, MetaTensor):
            name, grid = image.meta["filename_or_obj"], _grid(image)
        else:  # not among the keys that are read
            name = self._files(image)[0]
            grid = open_image(name).grid
        label = _tensor(_first(value) or name, open_label(value, self.class_names, grid))
        slices = data.get(self.labelled_slices_key)
        return label if slices is None else _of_slices(label, slices)


def _of_slices(label: MetaTensor, slices: Sequence[int]) -> MetaTensor:
    """A label of which only some slices are labelled; the others become 255."""
    count = label.shape[-1] if label.ndim == 4 else 0
    check_labelled_slices(slices, count, label.meta["filename_or_obj"])
    kept = torch.zeros(count, dtype=torch.bool)
    kept[list(slices)] = True
    return label.masked_fill(~kept, UNLABELLED)


@cache
def _loader() -> LoadImage:
    return LoadImage(image_only=True, ensure_channel_first=True)


def _tensor(path: str, image: ImageFile) -> MetaTensor:
    return _loader()(path, MedicalImageReader(lambda _: image))


def _grid(image: MetaTensor) -> Grid:
    affine = to_affine_nd(3, np.asarray(image.affine, dtype=np.float64))
    return Grid(tuple(image.shape[1:]), affine, 1, image.meta["placed"], image.meta["unit"])


def _first(value: Any) -> str:
    """The first path of a label; empty for one without any."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next(filter(None, map(_first, value)), "")
    return str(value)


def _on_grid_of(image: MetaTensor, other: MetaTensor) -> MetaTensor:
    """Another sequence of the same examination on the voxels of the first.

    Raises:
        ReadingError: they have no place in space, or do not overlap.
    """
    grid, own = _grid(image), _grid(other)
    name, first = other.meta["filename_or_obj"], image.meta["filename_or_obj"]
    if grid.shape == own.shape and grid.voxels_apart(own) <= _SAME:
        return other
    if not (grid.placed and own.placed):
        raise ReadingError(
            f"{name}: its shape is {own.shape}, but that of {first} is {grid.shape}; they must be equal, because "
            "pictures have no position in space by which one could be resampled to the other."
        )
    covered = grid.covered_by(own)
    if covered == 0:
        raise ReadingError(f"{name}: by its header it does not overlap {first}; are both of one examination?")
    logger.warning(
        f"{name}: its grid differs from that of {first}, so it is resampled to that grid"
        f"{f'; it covers {covered:.0%} of it' if covered < 1 else ''}."
    )
    return ResampleToMatch(mode="bilinear", padding_mode="border")(other, image)
