from __future__ import annotations

import random

import pytest

from medsaga.data import split_by_patient

# 20 patients with 1 to 3 cases each
CASES = [{"image": f"p{p:02d}_{i}.png", "patient": f"p{p:02d}"} for p in range(20) for i in range(1 + p % 3)]


def patients(cases):
    return {case["patient"] for case in cases}


@pytest.mark.parametrize(
    ("test", "validation", "train", "expected"),
    [(4, 3, None, (4, 3, 13)), (4, 3, 5, (4, 3, 5)), (0.25, 0.1, None, (5, 2, 13)), (0, 0, 20, (0, 0, 20))],
)
def test_parts_have_the_asked_numbers_of_patients_and_share_none(test, validation, train, expected):
    split = split_by_patient(CASES, test, validation, train)
    parts = [patients(split[name]) for name in ("test", "validation", "train")]
    assert tuple(len(part) for part in parts) == expected
    assert len(set.union(*parts)) == sum(expected)
    for part in split.values():  # every case of a patient, in the list's order
        assert part == [case for case in CASES if case["patient"] in patients(part)]


def test_split_depends_on_the_seed_and_not_on_the_order_of_the_list():
    shuffled = random.Random(0).sample(CASES, len(CASES))
    first, second = (split_by_patient(cases, 5, 3, seed=1) for cases in (CASES, shuffled))
    assert {name: patients(part) for name, part in first.items()} == {n: patients(p) for n, p in second.items()}
    assert patients(first["test"]) != patients(split_by_patient(CASES, 5, 3, seed=2)["test"])


def test_split_of_a_seed_is_the_same_in_every_process_and_release():
    """Figures are compared over months: these patients must stay the test patients."""
    split = split_by_patient(CASES, 5, 3, seed=1)
    assert patients(split["test"]) == {"p02", "p03", "p06", "p10", "p16"}
    assert patients(split["validation"]) == {"p04", "p14", "p17"}


@pytest.mark.parametrize(("validation", "train"), [(0, None), (3, None), (0.3, 1), (10, 5)])
def test_test_patients_stay_the_same_whatever_the_other_numbers(validation, train):
    reference = split_by_patient(CASES, 5, 2, 3, seed=7)["test"]
    assert split_by_patient(CASES, 5, validation, train, seed=7)["test"] == reference


def test_fewer_training_patients_are_among_the_more():
    few, more = (patients(split_by_patient(CASES, 5, 2, n)["train"]) for n in (3, 9))
    assert few < more


def test_without_a_patient_each_image_is_its_own():
    cases = [{"image": f"{i}.png"} for i in range(6)]
    split = split_by_patient(cases, 2, 1)
    assert [len(split[name]) for name in ("test", "validation", "train")] == [2, 1, 3]


@pytest.mark.parametrize(
    ("test", "validation", "train", "message"),
    [
        (15, 5, None, "20 patients cannot be split into 15 for test, 5 for validation and 1 for training"),
        (10, 5, 6, "20 patients cannot be split into 10 for test, 5 for validation and 6 for training"),
        (1, 1, 0, "20 patients cannot be split"),
        (0.9, 0.2, None, "20 patients cannot be split into 18 for test, 4 for validation"),
    ],
)
def test_too_few_patients_is_an_error_with_the_numbers(test, validation, train, message):
    with pytest.raises(ValueError, match=message):
        split_by_patient(CASES, test, validation, train)
