"""What a model's versions say about more labels."""

import pytest
from lib.model_versions import Version
from lib.trainers.needed import what_more_labels_bring


def version(labels, score, **known):
    return Version(score=score, trained_on=[f"image{i}" for i in range(labels)], held_back=["held"], **known)


def test_versions_of_different_numbers_of_labels_are_continued():
    says = what_more_labels_bring([version(2, 0.6, score_error=0.02), version(4, 0.7, score_error=0.02)])
    assert says.startswith("with 8 labels a Dice of 0.7") and "80 % interval" in says


def test_the_lowest_class_is_named():
    says = what_more_labels_bring([version(2, 0.6, class_scores={"anterior": 0.7, "posterior": 0.5})])
    assert says == "lowest class: posterior, 0.500"


def test_a_flat_curve_says_that_more_labels_hardly_pay():
    flat = [version(labels, 0.95, score_error=0.01) for labels in (4, 8, 16)]
    assert "will help little" in what_more_labels_bring(flat)


@pytest.mark.parametrize(
    "versions",
    [[], [version(2, None)], [version(2, 0.6), version(4, None)], [version(2, 0.6)]],
    ids=["none", "no score", "no score at last", "one number"],
)
def test_without_a_score_or_a_second_number_nothing_is_said(versions):
    assert what_more_labels_bring(versions) == ""
