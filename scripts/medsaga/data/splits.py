"""Which patients are trained on, validated with and tested: drawn by seed, named by a file or recorded with a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsaga.records import learnt_patients, read_record

from .case import case_name, patient_of

__all__ = ["evaluation_parts", "kept_out", "split_by_patient", "training_parts"]

logger = logging.getLogger(__name__)

Parts = dict[str, list[dict]]

_PARTS = ("train", "validation", "test")


def split_by_patient(
    datalist: Sequence[dict], test: int | float, validation: int | float, train: int | None = None, seed: int = 0
) -> Parts:
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
    for name, asked, number in (("test", test, n_test), ("validation", validation, n_validation)):
        if asked > 0 and number == 0:
            logger.warning(f"No {name} patient: {asked} of {len(patients)} patients rounds to 0.")
    parts = {
        "test": patients[:n_test],
        "validation": patients[n_test : n_test + n_validation],
        "train": patients[n_test + n_validation : n_test + n_validation + n_train],
    }
    return _cases_of(datalist, parts)


def training_parts(
    datalist: Sequence[dict],
    split: str | Path | None,
    test: int | float,
    validation: int | float,
    train: int | None = None,
    seed: int = 0,
) -> Parts:
    """The cases of a training: those that a file names by patient, or the data set itself, else drawn by seed.

    Args:
        datalist: as in :func:`split_by_patient`, as are the numbers and the seed. Where cases name their part of the
            data set's own split (``split``: train, validation or test), it is kept: only the parts that it lacks are
            drawn, from its training patients.
        split: a run's ``split.json``, or any JSON file with the lists of patients ``train``, ``validation`` and
            ``test``; None draws.
        test, validation, train, seed: of the draw.

    Returns:
        {"train": cases, "validation": cases, "test": cases}. Patients that the file does not name are in none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without these lists, with a patient in two of them or without one to train on; patients that
            are not in the datalist; fewer patients than asked for.
    """
    if split is None:
        own = _own_split(datalist)
        if own is None:
            return split_by_patient(datalist, test, validation, train, seed)
        # the data set's own split replaces the numbers; with 0 no patients are drawn
        asked = [0 if own[part] else number for part, number in (("test", test), ("validation", validation))]
        drawn = split_by_patient(own["train"], *asked, train, seed)
        return {part: own[part] if own[part] and part != "train" else drawn[part] for part in _PARTS}
    names = _read_split(split)
    if not names["train"]:
        raise ValueError(f"{split}: 'train' is empty; it must name the patients to train on.")
    return _named(datalist, names, f"{split}")


def evaluation_parts(
    datalist: Sequence[dict],
    model_path: str | Path,
    split: str | Path | None,
    test: int | float,
    validation: int | float,
    train: int | None = None,
    seed: int = 0,
) -> Parts:
    """The cases of an evaluation: the test patients that the model's record names, whatever numbers and seed say.

    Args:
        datalist: as in :func:`split_by_patient`.
        model_path: weights to evaluate.
        split: file of other patients to score, as in :func:`training_parts`. None takes the record's.
        test, validation, train, seed: of the draw; they are used only for a model without a record, with a warning.

    Returns:
        {"train": cases, "validation": cases, "test": cases}. The first two are empty, unless the split is drawn because
        the model has no record.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: no test patient, test patients that are not in the datalist, or test patients that the model has
            learnt from or by which its epoch was chosen.
    """
    record = read_record(model_path)
    if record is None:
        logger.warning(
            f"{model_path} does not say which patients it has learnt from (it was exported without their names, comes "
            "from an older version, or comes from elsewhere): nothing shows that the patients scored here are unseen."
        )
        if split is None:
            return training_parts(datalist, None, test, validation, train, seed)
    names = record if split is None else _read_split(split)
    source = f"{model_path}" if split is None else f"{split}"
    if not names["test"]:
        raise ValueError(
            f"{source}: it names no test patient. Name the patients to score in a file, with --split FILE "
            '({"train": [], "validation": [], "test": [names]}).'
        )
    test_patients = set(names["test"])
    chosen_by = set(record["validation"]) if record is not None else set()
    for seen, how in (
        (learnt_patients(record), "it has learnt from them"),
        (chosen_by, "its epoch was chosen by validating with them"),
    ):
        if common := test_patients & seen:
            raise ValueError(
                f"{source}: {len(common)} of its {len(test_patients)} test patients are not unseen: {model_path} says "
                f"that {how}. Score other patients, or leave out --split to score the model's own test patients."
            )
    return _named(datalist, {"train": [], "validation": [], "test": names["test"]}, source)


def _own_split(datalist: Sequence[dict]) -> Parts | None:
    """The split that cases bring with them; None where they bring none."""
    if not any(case.get("split") for case in datalist):
        return None
    parts: Parts = {part: [] for part in _PARTS}
    part_of: dict[str, str] = {}
    for case in datalist:
        part, patient = case.get("split") or "train", patient_of(case)
        if part not in _PARTS:
            raise ValueError(f"{case_name(case)}: split is {part!r}; it must be one of {', '.join(_PARTS)}.")
        if (other := part_of.setdefault(patient, part)) != part:
            raise ValueError(
                f"The data set's own split has the patient of {case_name(case)} in both {other} and {part}."
            )
        parts[part].append(case)
    if not parts["train"]:
        raise ValueError("The data set's own split names no case to train on; give one with --split FILE.")
    return parts


def _read_split(path: str | Path) -> dict[str, list[str]]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: --split must name a run's split.json, or a file like it.")
    try:
        content = json.loads(file.read_text())
        names = {part: [str(name) for name in content[part]] for part in _PARTS}
        if not all(isinstance(content[part], list) for part in _PARTS):
            raise TypeError("they must be lists")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a split: it must be JSON with three lists of patients, 'train', 'validation' and 'test'. A "
            f"list may be empty ({error!r})."
        ) from error
    for i, part in enumerate(_PARTS):
        for other in _PARTS[i + 1 :]:
            if common := set(names[part]) & set(names[other]):
                raise ValueError(
                    f"{file}: {len(common)} patients are in both '{part}' and '{other}'; keep them in one list."
                )
    return names


def kept_out(split: str | Path | None) -> set[str]:
    """Patients that a split file names as ``kept_out``: they are in no part and must not be learnt from otherwise.

    Raises:
        FileNotFoundError, ValueError: as :func:`training_parts`.
    """
    if split is None:
        return set()
    _read_split(split)
    return {str(name) for name in json.loads(Path(split).expanduser().read_text()).get("kept_out", [])}


def _named(datalist: Sequence[dict], names: dict[str, list[str]], source: str) -> Parts:
    known = {patient_of(case) for case in datalist}
    for part in _PARTS:
        if missing := set(names[part]) - known:
            raise ValueError(
                f"{source}: {len(missing)} of its {len(set(names[part]))} {part} patients are not in the data folder. "
                "Name the folder that holds them with --dataset_dir, or name other patients with --split FILE."
            )
    return _cases_of(datalist, names)


def _cases_of(datalist: Sequence[dict], names: dict[str, list[str]]) -> Parts:
    parts = {part: set(names[part]) for part in _PARTS}
    return {part: [case for case in datalist if patient_of(case) in chosen] for part, chosen in parts.items()}
