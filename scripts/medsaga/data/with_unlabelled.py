"""Labelled slices, each with one that has no label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .case import patient_of, without_label
from .datalists import Datalist
from .slice_dataset import SliceDataset
from .splits import kept_out
from .unlabelled import unlabelled_datalist

__all__ = ["WithUnlabelled", "unlabelled_pool"]


def unlabelled_pool(
    datalist: Sequence[dict],
    parts: dict[str, list[dict]],
    images_dir: str | Path | None = None,
    sequences: Sequence[str] | None = None,
    split: str | Path | None = None,
) -> Datalist:
    """Images to learn from without their labels, none of them from a validation, test or kept-out patient.

    Args:
        datalist: of the bundle; its training patients and those that are in no part are taken.
        parts: the cases of training, validation and test.
        images_dir: a folder with more images; None for none.
        sequences: as of :func:`~medsaga.data.images_datalist`.
        split: file of the parts, if there is one, which may name patients as ``kept_out``.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: there is no image.
    """
    kept = {patient_of(case) for part in ("validation", "test") for case in parts[part]} | kept_out(split)
    cases = [case for case in datalist if patient_of(case) not in kept]
    if images_dir is not None:
        cases += [case for case in unlabelled_datalist(images_dir, sequences) if patient_of(case) not in kept]
    pool = {str(case["image"]): without_label(case) for case in cases}
    if not pool:
        raise ValueError(
            "There is no unlabelled image to learn from: name a folder of images with --unlabelled_dir FOLDER."
        )
    return list(pool.values())


class WithUnlabelled(Dataset):
    """A training's slices, each with a slice without a label, which is another one in each epoch.

    The choice of this slice and its augmentation depend on seed, epoch and index alone.

    Args:
        labelled: slices of the training.
        unlabelled: slices without labels; their ``transform`` gives ``image`` and ``weak``, see
            :class:`~medsaga.engines.PreparePseudoLabels`.
        seed: of the draw.
    """

    def __init__(self, labelled: SliceDataset, unlabelled: SliceDataset, seed: int = 0) -> None:
        self.labelled = labelled
        self.unlabelled = unlabelled
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """
        Returns:
            what ``labelled`` has, and ``unlabelled`` and ``weak``, images (C, S, S).
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        random = np.random.default_rng([self.seed, epoch, index])
        other = self.unlabelled[epoch, int(random.integers(len(self.unlabelled)))]
        images: dict[str, torch.Tensor] = {"unlabelled": other["image"], "weak": other["weak"]}
        return {**self.labelled[item], **images}
