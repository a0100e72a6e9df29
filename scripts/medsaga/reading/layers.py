"""Class numbers from one mask a class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsaga.dicom_seg import label_key

from .image import ReadingError

__all__ = ["Layers", "class_of", "needed"]

_LOGGER = logging.getLogger(__name__)


class Layers:
    """A label that masks of classes are laid on, in the order of the classes: the later ones cover the earlier.

    Args:
        shape: of the label.
        class_names: of all classes, background first.
        name: of the file, for the notice of overlaps.
    """

    def __init__(self, shape: Sequence[int], class_names: Sequence[str], name: str | Path) -> None:
        self.label = np.zeros(tuple(shape), dtype=np.uint8 if len(class_names) <= 256 else np.int32)
        self.class_names = class_names
        self.name = name
        self._covered: dict[tuple[int, int], int] = {}

    def add(self, number: int, mask: np.ndarray, overlaps: np.ndarray | None = None) -> None:
        """Give a class its voxels.

        Args:
            number: of the class.
            mask: bool, of the label's shape.
            overlaps: the voxels of ``mask`` to report if an earlier class has them, too; by default all of ``mask``.
        """
        here = self.label[mask if overlaps is None else overlaps]
        for other, count in zip(*np.unique(here[here != 0], return_counts=True)):
            if other != number:
                pair = (int(other), number)
                self._covered[pair] = self._covered.get(pair, 0) + int(count)
        self.label[mask] = number

    def finished(self) -> np.ndarray:
        """The label; overlaps of classes are logged."""
        for (under, over), count in self._covered.items():
            _LOGGER.warning(
                "%s: %d voxels belong to both %s and %s; they are counted as %s, the later class.",
                self.name, count, self.class_names[under], self.class_names[over], self.class_names[over],
            )  # fmt: skip
        return self.label


def class_of(name: str, class_names: Sequence[str]) -> int | None:
    """Number of the class that a name in a label refers to; None where it is no class."""
    keys = [label_key(class_name) for class_name in class_names]
    key = label_key(name)
    return keys.index(key) if key in keys else None


def needed(class_names: Sequence[str] | None, name: str | Path, form: str) -> Sequence[str]:
    """The names of the classes, for a form of labels that needs them.

    Raises:
        ReadingError: there are none.
    """
    if class_names is None:
        raise ReadingError(f"{name}: {form} needs the names of the classes; give ReadImaged the class_names.")
    return class_names
