"""Splits of a list of cases by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["split_by_patient"]


def patient_of(case: dict) -> str:
    """The case's ``patient``, or its image's path where none is named (then each image is a patient of its own)."""
    return str(case.get("patient", case["image"]))


def split_by_patient(
    datalist: Sequence[dict], test: int | float, validation: int | float, train: int | None = None, seed: int = 0
) -> dict[str, list[dict]]:
    """Draw test, validation and training patients, in this order, from one seeded shuffle of the patients.

    Every case of a patient falls in the same part. A seed's test patients stay the same whatever the other numbers.

    Args:
        datalist: cases with an ``image`` and, where a patient has several, a ``patient``.
        test: number of test patients, or their share of all patients where it is below 1.
        validation: the same for validation.
        train: number of training patients; None takes all that remain.
        seed: of the shuffle.

    Returns:
        {"train": cases, "validation": cases, "test": cases}.

    Raises:
        ValueError: fewer patients than asked for, with both numbers.
    """
    # sorted first: the order of a folder's listing must not change the split
    patients = sorted({patient_of(case) for case in datalist})
    np.random.RandomState(seed).shuffle(patients)
    n_test, n_validation = (int(n) if n >= 1 else round(n * len(patients)) for n in (test, validation))
    n_train = len(patients) - n_test - n_validation if train is None else train
    if n_train < 1 or n_test + n_validation + n_train > len(patients):
        raise ValueError(
            f"{len(patients)} patients cannot be split into {n_test} for test, {n_validation} for validation and "
            f"{max(n_train, 1)} for training; lower the numbers or add data."
        )
    parts = {
        "test": patients[:n_test],
        "validation": patients[n_test : n_test + n_validation],
        "train": patients[n_test + n_validation : n_test + n_validation + n_train],
    }
    return {name: [case for case in datalist if patient_of(case) in set(part)] for name, part in parts.items()}
