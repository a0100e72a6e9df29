"""Finished objects: they were submitted for an image, or prompted since, and must not be overwritten."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.served_model import image_key
from medsaga.dicom_seg import label_key
from medsaga.reading import ReadingError, open_image
from medsaga.reading.labels import class_numbers, whole_numbers

__all__ = ["FinishedObjects", "Region"]

logger = logging.getLogger(__name__)

_BYTES = 64 * 2**20  # of a bundle's objects; a voxel is a bit, and only those in the box around an object are kept
_ENTRY_BYTES = 1000  # counted for an image beside its objects, so that the number of images is bounded too


class Region:
    """A mask in a volume, kept as the bits of the box around it.

    Args:
        mask: bool (W, H) or (W, H, D), not empty.

    Attributes:
        shape: of the volume, always three numbers.
        window: the box, slices by axis.
    """

    def __init__(self, mask: np.ndarray) -> None:
        mask = _solid(mask)
        self.shape = mask.shape
        columns = mask.any(axis=2)
        sides = (columns.any(axis=1), columns.any(axis=0), mask.any(axis=(0, 1)))
        found = [np.flatnonzero(side) for side in sides]
        self.window = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in found)
        inner = mask[self.window]
        self._sides, self._bits = inner.shape, np.packbits(inner)

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._bits.nbytes

    @property
    def inner(self) -> np.ndarray:
        """The mask within the box, bool."""
        return np.unpackbits(self._bits, count=int(np.prod(self._sides))).reshape(self._sides).astype(bool)

    @property
    def mask(self) -> np.ndarray:
        """The whole mask, bool (W, H, D)."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[self.window] = self.inner
        return mask

    def set_in(self, values: np.ndarray, value: int) -> bool:
        """Set the mask's voxels in an array (W, H) or (W, H, D); return whether any of them was not 0 before."""
        here, inner = _solid(values)[self.window], self.inner
        overlapped = bool(here[inner].any())
        here[inner] = value
        return overlapped

    def covers(self, voxels: Sequence[slice]) -> bool:
        """Whether a box of voxels lies all inside the mask."""
        asked = [(s.start, s.stop) for s in voxels]
        own = [(s.start, s.stop) for s in self.window]
        if not all(low >= first and high <= last for (low, high), (first, last) in zip(asked, own)):
            return False
        shifted = tuple(slice(low - first, high - first) for (low, high), (first, _) in zip(asked, own))
        return bool(self.inner[shifted].all())


@dataclass
class _Image:
    """Args:
    label: names the content of the final label that the objects began with; None without one.
    objects: by label.
    """

    label: str | None
    objects: dict[str, Region] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return _ENTRY_BYTES + sum(region.nbytes for region in self.objects.values())


class FinishedObjects:
    """The finished objects of a bundle's images: the classes of the final label, or what was prompted since.

    For each label the last answer to prompts is kept. It is in memory only and not kept per client, because several
    annotators do not share an image. It is forgotten when a label is submitted for the image (the label counts from
    then on), when the server ends, and, if memory is short, for the images that were used the longest ago.

    Args:
        labels: class number by name.
        max_bytes: bound on the memory that all objects take.
    """

    def __init__(self, labels: Mapping[str, int], max_bytes: int = _BYTES) -> None:
        self.labels = labels
        self.max_bytes = max_bytes
        self._names = {label_key(name): name for name in labels}
        self._images: OrderedDict[str, _Image] = OrderedDict()
        self._lock = threading.RLock()

    def name(self, label: str | None) -> str | None:
        """The name under which an object of a label is known; None where a request names none, or the background."""
        key = label_key(label or "")
        return None if key in ("", "background") else self._names.get(key, label)

    def of(self, image: str, final_label: str | None, shape: Iterable[int]) -> dict[str, Region]:
        """The finished objects of an image, by label.

        Args:
            image: file of the image.
            final_label: file of its final label, of this bundle's classes; None without one.
            shape: of the image, (W, H) or (W, H, D).
        """
        with self._lock:
            return dict(self._entry(image, final_label, tuple(shape)).objects)

    def keep(
        self,
        image: str,
        final_label: str | None,
        label: str,
        mask: np.ndarray,
        slices: tuple[int, Sequence[int]] | None = None,
        replace: bool = False,
    ) -> None:
        """Keep the answer for a label as its finished object, in place of the former one.

        Args:
            image: file of the image.
            final_label: file of its final label.
            label: as :meth:`name` gives it.
            mask: the answer, (W, H) or (W, H, D), on the grid of the image file.
            slices: the axis across the slices that were prompted, and their indices, where only those are replaced.
            replace: remove the answer's voxels from the other objects.
        """
        mask = _solid(mask).astype(bool)
        with self._lock:
            entry = self._entry(image, final_label, mask.shape)
            former = entry.objects.get(label)
            if slices is not None and former is not None:
                axis, indices = slices
                changed = former.mask
                np.moveaxis(changed, axis, 0)[indices] = np.moveaxis(mask, axis, 0)[indices]
                self._set(entry, label, changed)
            else:
                self._set(entry, label, mask)
            if replace:
                for other in [name for name in entry.objects if name != label]:
                    left = entry.objects[other].mask & ~mask
                    self._set(entry, other, left)
            self._images[image_key(image)] = entry
            self._shrink()

    def forget(self, image: str) -> None:
        """Forget what was prompted in an image."""
        with self._lock:
            self._images.pop(image_key(image), None)

    @staticmethod
    def _set(entry: _Image, label: str, mask: np.ndarray) -> None:
        if mask.any():
            entry.objects[label] = Region(mask)
        else:
            entry.objects.pop(label, None)

    def _entry(self, image: str, final_label: str | None, shape: tuple[int, ...]) -> _Image:
        there = final_label is not None and os.path.isfile(final_label)  # another client may just have removed it
        key, label = image_key(image), image_key(final_label) if there else None
        entry = self._images.get(key)
        if entry is None or entry.label != label:  # a store may get a label from elsewhere
            entry = _Image(label, self._submitted(final_label, shape) if there else {})
        if entry.objects:
            self._images[key] = entry
            self._images.move_to_end(key)
            self._shrink()
        return entry

    def _submitted(self, path: str, shape: tuple[int, ...]) -> dict[str, Region]:
        """The classes that a final label has; none, with a warning, of one that cannot be used any more."""
        try:
            values = whole_numbers(open_image(path, label=True).load(), path)
            numbers = _solid(class_numbers(values, max(self.labels.values()) + 1, path)[0])
            if numbers.shape != (*shape, 1)[:3]:
                raise ReadingError(f"{path}: its shape is {numbers.shape}, but its image has {shape}")
        except (ReadingError, OSError) as err:
            logger.warning("A final label cannot be used, so its objects are not protected: %s", err)
            return {}
        present = np.unique(numbers)
        return {name: Region(numbers == number) for name, number in self.labels.items() if number in present}

    def _shrink(self) -> None:
        total = sum(entry.nbytes for entry in self._images.values())
        while total > self.max_bytes and len(self._images) > 1:
            total -= self._images.popitem(last=False)[1].nbytes


def _solid(values: np.ndarray) -> np.ndarray:
    """The same values, not a copy, with three axes."""
    return values if values.ndim == 3 else values[..., None]
