"""What the trainings of one folder say together."""

import json
import math

import pytest

from medsaga.handlers.learning_curve import add_to_curve

SETTINGS = {"lr": 0.001, "seed": 0, "num_slices": None, "train_patients": None, "max_epochs": 4}


def record(patients=2, slices=10, validation=("v1", "v2")):
    names = [f"p{i}" for i in range(patients)]
    return {
        "train": names,
        "validation": list(validation),
        "class_names": ["background", "anterior", "posterior"],
        "slices": [{"patient": name, "slices": list(range(slices // patients))} for name in names],
    }


def add(folder, scores=((0.8, 0.7), (0.9, math.nan)), settings=SETTINGS, **known):
    return add_to_curve(folder, record(**known), settings, scores)


def test_one_training_makes_no_curve(tmp_path):
    lines = add(tmp_path)
    # of the first case .75, of the second .9
    assert "mean Dice of 2 validation patients by slices: 0.825 with 10" in lines[0]
    assert "A curve needs two numbers of labels" in lines[1] and "--num_slices 5" in lines[1]
    assert lines[2] == "The class with the lowest Dice is posterior: 0.700."
    assert not (tmp_path / "learning_curve.png").exists()
    point = json.loads((tmp_path / "learning_curve.json").read_text())[0]
    assert point["classes"] == {"anterior": pytest.approx(0.85), "posterior": pytest.approx(0.7)}


def test_two_numbers_of_slices_are_continued(tmp_path):
    add(tmp_path, [(0.6, 0.6)], slices=10)
    lines = add(tmp_path, [(0.7, 0.7)], settings={**SETTINGS, "num_slices": 20, "max_epochs": 2}, slices=20)
    assert "by slices: 0.600 with 10, 0.700 with 20" in lines[0]
    assert lines[1].startswith("Expected mean Dice with 40: 0.7")
    assert (tmp_path / "learning_curve.png").stat().st_size > 1000


def test_where_patients_differ_they_are_what_counts(tmp_path):
    add(tmp_path, patients=2)
    assert "by patients: 0.825 with 2, 0.825 with 4" in add(tmp_path, patients=4, slices=20)[0]


def test_a_flat_curve_says_that_more_labels_hardly_pay(tmp_path):
    for slices in (10, 20, 40):
        lines = add(tmp_path, [(0.95, 0.95)], slices=slices)
    assert any("hardly help" in line for line in lines)


@pytest.mark.parametrize(
    "other", [{"settings": {**SETTINGS, "lr": 0.01}}, {"validation": ("v1", "v3")}], ids=["rate", "patients"]
)
def test_trainings_that_cannot_be_compared_are_no_points_of_one_curve(tmp_path, other):
    add(tmp_path, slices=10, **other)
    assert "A curve needs two numbers of labels" in add(tmp_path, slices=20)[1]
    assert len(json.loads((tmp_path / "learning_curve.json").read_text())) == 2, "kept for later"


def test_the_same_training_again_takes_the_place_of_the_first(tmp_path):
    add(tmp_path, [(0.5, 0.5)])
    assert "0.800 with 10." in add(tmp_path, [(0.8, 0.8)])[0]


def test_a_damaged_file_costs_the_curve_and_no_training(tmp_path):
    (tmp_path / "learning_curve.json").write_text('[{"patients"')
    assert "A curve needs two numbers of labels" in add(tmp_path)[1]


def test_no_sentence_names_a_patient(tmp_path):
    add(tmp_path)
    assert not any(name in line for line in add(tmp_path, slices=20) for name in ("p0", "p1", "v1", "v2"))
