"""Self-training: whole volumes with a teacher's labels, beside the slices that a person has labelled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, MapLabelValued
from torch.utils.data import Dataset

from .case import case_name, without_label
from .slice_dataset import SliceDataset

__all__ = ["WithTeacherLabels", "cases_to_label", "teacher_file", "teacher_labelled", "without_label_values"]

logger = logging.getLogger(__name__)

_KNOWN = "known_slices"


def teacher_file(teacher: str | Path | None) -> Path:
    """The file with a teacher's weights.

    Raises:
        FileNotFoundError: there is none.
    """
    path = None if teacher is None else Path(teacher).expanduser()
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"teacher: {teacher} is no file. Give the weights of a finished training, such as --teacher "
            "bundles/NAME/models/model.pt."
        )
    return path


def cases_to_label(labelled: SliceDataset, unlabelled: Sequence[dict]) -> list[dict]:
    """The cases that a teacher labels: those of a training and others.

    Args:
        labelled: slices of the training. Its cases keep their labels and get ``known_slices``, the positions of the
            slices that are trained on, for :class:`~medsaga.transforms.FillUnlabelledd`.
        unlabelled: cases without labels; those whose image is one of the training's are left out.
    """
    cases = [
        {**cached.case, _KNOWN: np.array(shown, dtype=np.int64)}
        for cached, shown in zip(labelled.cases, labelled.shown_slices())
    ]
    for case in cases:
        case.pop("plane", None)  # with plane="all" there is a case for each
    images = {str(case["image"]) for case in cases}
    others = [case for case in unlabelled if str(case["image"]) not in images]
    logger.info(f"A teacher labels {len(cases)} training cases and {len(others)} others.")
    return cases + others


def teacher_labelled(cases: Sequence[dict], labels_dir: str | Path, suffix: str = ".nii.gz") -> list[dict]:
    """The same cases with the labels that :class:`~medsaga.transforms.SaveMaskd` has written for them.

    Args:
        cases: of :func:`cases_to_label`.
        labels_dir: folder of ``CASE_seg`` and the suffix.
        suffix: of these files.
    """
    return [{**without_label(case), "label": str(Path(labels_dir, f"{case_name(case)}_seg{suffix}"))} for case in cases]


def without_label_values(preprocessing: Compose) -> Compose:
    """Preprocessing of labels that hold class numbers already, whatever numbers the data set's own labels hold."""
    return Compose([one for one in preprocessing.transforms if not isinstance(one, MapLabelValued)])


class WithTeacherLabels(Dataset):
    """An epoch of as many slices as are labelled, some of them with the label of a teacher.

    Which ones, and their augmentation, depend on seed, epoch and index alone.

    Args:
        labelled: slices of the training.
        taught: slices with a teacher's labels.
        share: of these among all, from 0 to 1.
        seed: of the draw.

    Raises:
        ValueError: a share that is not from 0 to 1.
    """

    def __init__(self, labelled: SliceDataset, taught: SliceDataset, share: float = 1.0, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"teacher_share must be from 0 to 1, got {share}.")
        self.labelled = labelled
        self.taught = taught
        self.share = share
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        random = np.random.default_rng([self.seed, epoch, index])
        if random.random() >= self.share:
            return self.labelled[epoch, index]
        return self.taught[epoch, int(random.integers(len(self.taught)))]
