"""What a training learns from, as it is written with the run and into the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsaga.records import learnt_patients, read_record
from medsaga.transforms.orient_slices import ALL_PLANES

from .case import case_name, patient_of
from .slice_dataset import SliceDataset

__all__ = ["add_test_patients", "record_notes", "training_record"]


def training_record(
    train: Sequence[dict],
    validation: Sequence[dict],
    dataset: SliceDataset,
    class_names: Sequence[str],
    seed: int,
    weights: str | Path | None = None,
    unlabelled: Sequence[dict] = (),
) -> dict[str, Any]:
    """The record of a training, to which :func:`add_test_patients` adds those kept for the test.

    Args:
        train: cases of the training.
        validation: cases by which the best epoch is chosen.
        dataset: the training slices.
        class_names: of all classes, background first.
        seed: of the run.
        weights: what the network starts from. Where it is a file of weights with a record, the patients that they have
            learnt from count as learnt.
        unlabelled: cases whose images are learnt from without their labels.

    Returns:
        plain values: the patients by name as ``train``, ``validation``, ``test``, ``unlabelled`` (where there are any)
        and ``learnt_before``; ``plane``, where it is ``all``; ``slices``, for each case {"patient", "case", "slices"},
        with ``plane`` where slices of several planes are taken; ``class_names``, ``unseen_classes`` (that no training
        slice shows), ``empty_labels`` (cases whose label is all background), ``labelled``, ``seed`` and ``warnings``.

    Raises:
        ValueError: the weights have learnt from validation patients.
    """
    record: dict[str, Any] = {
        "train": _patients(train),
        "validation": _patients(validation),
        "test": [],
        **({"unlabelled": _patients(unlabelled)} if unlabelled else {}),
        "learnt_before": sorted(learnt_patients(read_record(weights))) if _is_file(weights) else [],
    }
    if dataset.plane == ALL_PLANES:
        record["plane"] = ALL_PLANES
    _refuse_learnt(record, "validation")
    slices = [
        {"patient": patient_of(cached.case), "case": case_name(cached.case), **_plane(cached.case), "slices": shown}
        for cached, shown in zip(dataset.cases, dataset.shown_slices())
        if shown
    ]
    return {
        **record,
        "slices": slices,
        "class_names": list(class_names),
        "unseen_classes": [class_names[index] for index in dataset.unseen_classes()],
        "empty_labels": [case_name(case) for case in dataset.empty_labels()],
        "labelled": dataset.labelled,
        "seed": seed,
        "warnings": list(dataset.shortages),
    }


def add_test_patients(record: dict[str, Any], test: Sequence[dict]) -> None:
    """Write into a record which patients are kept for the test.

    This is a separate step, because MONAI Label trains without a data folder, so without a split.

    Raises:
        ValueError: the weights that the training starts from have learnt from some of them.
    """
    record["test"] = _patients(test)
    _refuse_learnt(record, "test")


def _plane(case: dict) -> dict[str, str]:
    return {"plane": case["plane"]} if "plane" in case else {}


def _patients(cases: Sequence[dict]) -> list[str]:
    return sorted({patient_of(case) for case in cases})


def _refuse_learnt(record: dict[str, Any], part: str) -> None:
    if common := set(record[part]) & set(record["learnt_before"]):
        raise ValueError(
            f"weights: the weights that the training starts from have learnt from {len(common)} of the "
            f"{len(record[part])} {part} patients. Choose other patients with --split FILE (the split.json of the run "
            "that made the weights), or start from other weights."
        )


def record_notes(model_path: str | Path) -> list[str]:
    """What a reader of the model's scores has to know about its training: sentences without names of patients.

    Args:
        model_path: weights that are scored.

    Raises:
        FileNotFoundError, ValueError: they cannot be read.
    """
    record = read_record(model_path)
    if record is None:
        return [
            "The model does not say which patients it has learnt from (exported weights do not): "
            "nothing shows that these are unseen."
        ]
    notes = []
    if record["unseen_classes"]:
        notes.append(f"The model has never seen these classes: {', '.join(record['unseen_classes'])}.")
    if record["empty_labels"]:
        number = len(record["empty_labels"])
        notes.append(f"{number} of its training labels show background only (split.json names the cases).")
    return notes + record["warnings"]


def _is_file(weights: str | Path | None) -> bool:
    return weights is not None and Path(weights).expanduser().is_file()
