from __future__ import annotations

import json
import logging
import random

import pytest
import torch

from medsaga.data import evaluation_parts, split_by_patient, training_parts
from medsaga.records import with_record

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


def test_a_share_that_rounds_to_nobody_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert split_by_patient(CASES, 0.01, 0)["test"] == []
    assert "No test patient: 0.01 of 20 patients rounds to 0" in caplog.text
    assert "validation" not in caplog.text


# --- by file, and by the model's record ------------------------------------------------------------------------------

DRAW = (2, 2, 3, 0)  # test, validation, train, seed


def write_split(path, **parts):
    path.write_text(json.dumps({"train": [], "validation": [], "test": [], **parts}))
    return path


def model(path, **parts):
    """Weights with a record."""
    record = {"train": [], "validation": [], "test": [], "learnt_before": [], "labelled": True, **parts}
    torch.save(with_record(torch.nn.Linear(1, 1).state_dict(), record), path)
    return path


def test_without_a_file_patients_are_drawn():
    assert training_parts(CASES, None, *DRAW) == split_by_patient(CASES, *DRAW)


def test_a_file_names_the_patients_of_a_training(tmp_path):
    file = write_split(tmp_path / "s.json", train=["p01", "p04"], test=["p02"])
    parts = training_parts(CASES, str(file), *DRAW)
    assert {name: patients(part) for name, part in parts.items()} == {
        "train": {"p01", "p04"},
        "validation": set(),
        "test": {"p02"},
    }
    assert parts["test"] == [case for case in CASES if case["patient"] == "p02"], "with all of their cases"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a split"),
        ('{"train": ["p01"], "val": [], "test": []}', "is not a split: .*'validation'"),
        ('{"train": "p01", "validation": [], "test": []}', "they must be lists"),
        ("[]", "is not a split"),
        ('{"train": ["p01"], "validation": ["p02"], "test": ["p01"]}', "1 patients are in both 'train' and 'test'"),
        ('{"train": [], "validation": [], "test": ["p01"]}', "'train' is empty"),
        ('{"train": ["p01", "x", "y"], "validation": [], "test": []}', "2 of its 3 train patients are not in the data"),
    ],
)
def test_a_file_that_is_no_split_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "s.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        training_parts(CASES, file, *DRAW)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="--split must name a run's split.json"):
        training_parts(CASES, tmp_path / "none.json", *DRAW)


def test_the_models_record_names_the_patients_to_score(tmp_path):
    path = model(tmp_path / "m.pt", train=["p01"], validation=["p03"], test=["p02", "p05"])
    for draw in (DRAW, (5, 0, None, 9)):
        parts = evaluation_parts(CASES, path, None, *draw)
        assert {name: patients(part) for name, part in parts.items()} == {
            "train": set(),
            "validation": set(),
            "test": {"p02", "p05"},
        }


@pytest.mark.parametrize(
    ("part", "reason"), [("train", "learnt from"), ("learnt_before", "learnt from"), ("validation", "validating with")]
)
def test_what_the_model_knows_is_refused(tmp_path, part, reason):
    path = model(tmp_path / "m.pt", **{part: ["p01", "p02"]})
    file = write_split(tmp_path / "s.json", test=["p02", "p03"])
    with pytest.raises(ValueError, match=f"{file}: 1 of its 2 test patients.*{path}.*{reason}"):
        evaluation_parts(CASES, path, file, *DRAW)
    file = write_split(tmp_path / "s.json", test=["p03"])
    assert patients(evaluation_parts(CASES, path, file, *DRAW)["test"]) == {"p03"}


def test_patients_whose_images_alone_were_seen_may_be_scored(tmp_path):
    path = model(tmp_path / "m.pt", train=["p01"], labelled=False)
    file = write_split(tmp_path / "s.json", test=["p01"])
    assert patients(evaluation_parts(CASES, path, file, *DRAW)["test"]) == {"p01"}


def test_a_record_without_test_patients_is_refused(tmp_path):
    path = model(tmp_path / "m.pt", train=["p01"])
    with pytest.raises(ValueError, match=f"{path}: it names no test patient.*--split FILE"):
        evaluation_parts(CASES, path, None, *DRAW)


def test_no_message_names_a_patient(tmp_path):
    path = model(tmp_path / "m.pt", train=["p01"], test=["gone"])
    with pytest.raises(ValueError, match="1 of its 1 test patients are not in the data folder") as caught:
        evaluation_parts(CASES, path, None, *DRAW)
    assert "gone" not in str(caught.value)


def test_a_model_without_a_record_is_drawn_for_with_a_warning(tmp_path, caplog):
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "m.pt")
    with caplog.at_level(logging.WARNING):
        assert evaluation_parts(CASES, tmp_path / "m.pt", None, *DRAW) == split_by_patient(CASES, *DRAW)
    assert "does not say which patients it has learnt from" in caplog.text


# --- the data set's own split ----------------------------------------------------------------------------------------


def own_split(**parts):
    """Cases of :data:`CASES` with a part each; ``train`` where none is named."""
    part_of = {patient: part for part, names in parts.items() for patient in names}
    return [{**case, "split": part_of.get(case["patient"], "train")} for case in CASES]


def test_the_data_sets_own_split_is_kept():
    cases = own_split(test=["p03", "p07"], validation=["p11"])
    parts = training_parts(cases, None, 9, 9, None, seed=4)
    assert patients(parts["test"]) == {"p03", "p07"}
    assert patients(parts["validation"]) == {"p11"}
    assert len(patients(parts["train"])) == 17
    assert sum(map(len, parts.values())) == len(CASES), "with all cases of each patient"


def test_parts_that_the_split_lacks_are_drawn_from_its_training_patients():
    cases = own_split(test=["p03", "p07"])
    first, second = (training_parts(cases, None, 9, 3, 5, seed) for seed in (1, 2))
    for parts in (first, second):
        assert patients(parts["test"]) == {"p03", "p07"}
        assert (len(patients(parts["validation"])), len(patients(parts["train"]))) == (3, 5)
        assert not (patients(parts["validation"]) | patients(parts["train"])) & {"p03", "p07"}
    assert patients(first["validation"]) != patients(second["validation"])
    drawn = training_parts(own_split(validation=["p03"]), None, 4, 9, None, 0)
    assert (len(patients(drawn["test"])), patients(drawn["validation"])) == (4, {"p03"})


def test_a_file_comes_before_the_data_sets_own_split(tmp_path):
    file = write_split(tmp_path / "s.json", train=["p03"], test=["p01"])
    parts = training_parts(own_split(test=["p03"]), file, *DRAW)
    assert (patients(parts["train"]), patients(parts["test"])) == ({"p03"}, {"p01"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cases: cases[0].update(split="holdout"),
            "split is 'holdout'; it must be one of train, validation, test",
        ),
        (lambda cases: [case.update(split="test") for case in cases], "no case to train on"),
        (lambda cases: cases[2].update(split="test"), "in both train and test"),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(change, message):
    cases = own_split()
    change(cases)
    with pytest.raises(ValueError, match=message):
        training_parts(cases, None, *DRAW)


def test_a_model_without_a_record_is_scored_on_the_data_sets_own_test_part(tmp_path):
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "m.pt")
    parts = evaluation_parts(own_split(test=["p03"]), tmp_path / "m.pt", None, *DRAW)
    assert patients(parts["test"]) == {"p03"}


def with_split(**parts: int) -> list[dict]:
    """Cases of two images a patient, whose data set names their part."""
    named = [(f"{part}{i}", part) for part, count in parts.items() for i in range(count)]
    return [{"image": f"{p}_{n}.png", "patient": p, "split": part} for p, part in named for n in (1, 2)]


def test_the_data_set_s_own_split_is_kept_and_what_it_lacks_is_drawn():
    cases = with_split(train=6, test=3)
    parts = training_parts(cases, None, test=1, validation=2, train=None, seed=0)
    assert patients(parts["test"]) == {"test0", "test1", "test2"}
    assert len(patients(parts["validation"])) == 2 and len(patients(parts["train"])) == 4
    assert patients(parts["validation"]) | patients(parts["train"]) == {f"train{i}" for i in range(6)}
    assert len(parts["test"]) == 6

    parts = training_parts(with_split(train=6, validation=2), None, test=2, validation=5, train=3)
    assert patients(parts["validation"]) == {"validation0", "validation1"}
    assert len(patients(parts["test"])) == 2 and len(patients(parts["train"])) == 3
    assert not patients(parts["test"]) & patients(parts["train"])


@pytest.mark.parametrize(
    "change, message",
    [
        ([{"image": "x.png", "patient": "train0", "split": "test"}], "in both train and test"),
        ([{"image": "x.png", "patient": "x", "split": "holdout"}], "split is 'holdout'"),
    ],
)
def test_an_own_split_that_leaks_or_is_unknown_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        training_parts([*with_split(train=3, test=1), *change], None, test=1, validation=1)


def test_an_own_split_without_training_cases_is_refused():
    with pytest.raises(ValueError, match="no case to train on"):
        training_parts(with_split(test=4), None, test=1, validation=1)
