from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

from medsaga.handlers import MetricsTable
from medsaga.metrics import segmentation_metrics

NAMES = ["background", "anterior", "posterior"]
MEASURES = ("dice", "hd95", "slice_dice", "slice_hd95")
SPACING = (2.0, 1.0, 3.0)


def volume(rows_of_1=(0, 0), rows_of_2=(0, 0)):
    label = np.zeros((16, 16, 4), dtype=np.uint8)
    label[slice(*rows_of_1), 4:12, 1:3] = 1
    label[slice(*rows_of_2), 4:12, 1:3] = 2
    return label


REFERENCE = volume((2, 6), (8, 14))
PREDICTIONS = {
    "perfect.nii.gz": REFERENCE,
    "shifted.nii.gz": volume((3, 7), (9, 15)),
    "missed.nii.gz": volume((0, 0), (8, 14)),
}


@pytest.fixture
def table(tmp_path, case, evaluator):
    """The files of an evaluation, as read from disk, and the handler."""

    def run(cases):
        handler = MetricsTable(tmp_path / "evaluation", NAMES)
        evaluator(cases, handler).run()
        folder = tmp_path / "evaluation"
        with open(folder / "metrics.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        return lines, json.loads((folder / "metrics.json").read_text()), (folder / "metrics.md").read_text()

    return run


@pytest.fixture
def three(table, case):
    return table([case(name, pred, REFERENCE, SPACING) for name, pred in PREDICTIONS.items()])


def test_lines_are_the_metrics_of_each_case_in_mm(three):
    lines, _, _ = three
    assert [(line["case"], line["class"]) for line in lines] == [
        (case, name) for case in ("perfect", "shifted", "missed") for name in NAMES[1:]
    ]
    for pred, rows in zip(PREDICTIONS.values(), (lines[:2], lines[2:4], lines[4:])):
        expected = segmentation_metrics(torch.tensor(pred)[None], torch.tensor(REFERENCE)[None], 3, SPACING)
        for row, values in zip(rows, expected):
            assert [float(row[m]) for m in MEASURES] == pytest.approx([values[m] for m in MEASURES], nan_ok=True)
    # one row of 2 mm
    assert [float(line["hd95"]) for line in lines[2:4]] == pytest.approx([2, 2])
    assert float(lines[2]["dice"]) == pytest.approx(6 / 8)


def test_summary_counts_a_missed_class_as_zero_dice_and_leaves_its_hd95_out(three):
    _, summary, _ = three
    assert list(summary) == ["anterior", "posterior", "mean"]
    anterior, posterior, mean = summary.values()
    assert anterior["dice"] == pytest.approx({"mean": 1.75 / 3, "std": np.std([1, 0.75, 0]), "n": 3})
    assert anterior["hd95"] == pytest.approx({"mean": 1.0, "std": 1.0, "n": 2})
    assert posterior["dice"]["mean"] == pytest.approx((1 + 10 / 12 + 1) / 3)
    cases = [1, (0.75 + 10 / 12) / 2, 0.5]
    assert mean["dice"] == pytest.approx({"mean": np.mean(cases), "std": np.std(cases), "n": 3})
    assert [m["missed_or_invented"] for m in summary.values()] == [1, 0, 1]


def test_printed_table_has_a_line_for_each_class(three, caplog):
    _, summary, text = three
    lines = text.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["anterior", "posterior", "mean"]
    assert len({line.count("|") for line in lines}) == 1
    assert f"{summary['anterior']['dice']['mean']:.3f} ± {summary['anterior']['dice']['std']:.3f}" in lines[2]


def test_class_absent_everywhere_has_no_number(table, case):
    pred = label = volume((2, 6))
    lines, summary, text = table([case("a.png", pred[..., 1], label[..., 1])])
    assert [line["dice"] for line in lines] == ["1.0", "nan"]
    assert summary["posterior"]["dice"] == {"mean": None, "std": None, "n": 0}
    assert summary["posterior"]["missed_or_invented"] == 0
    assert summary["mean"]["dice"] == {"mean": 1.0, "std": 0.0, "n": 1}
    assert text.splitlines()[3] == "| posterior | – | – | – | – | 0 |"


def test_cases_of_one_name_in_different_folders_count_each(table, case):
    lines, summary, _ = table(
        [case(f"s{i}/ct.nii.gz", pred, REFERENCE, SPACING) for i, pred in enumerate(PREDICTIONS.values())]
    )
    assert len(lines) == 6
    assert summary["mean"]["dice"]["n"] == 3


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.nii.gz", "a"), ("b.png", "b"), ("1.2.840.113.nii.gz", "1.2.840.113"), ("1.2.840.113", "1.2.840.113")],
)
def test_case_is_named_by_its_file_without_suffix(table, case, file, name):
    assert table([case(file, REFERENCE, REFERENCE)])[0][0]["case"] == name


def test_notes_stand_below_the_table(tmp_path, case, evaluator):
    notes = ["The model has never seen: posterior.", "Another."]
    evaluator([case("a.nii.gz", REFERENCE, REFERENCE)], MetricsTable(tmp_path, NAMES, notes)).run()
    lines = (tmp_path / "metrics.md").read_text().splitlines()
    assert lines[-4:] == ["", notes[0], "", notes[1]] and lines[-5].startswith("| mean |")


def test_second_run_starts_afresh(tmp_path, case, evaluator):
    handler = MetricsTable(tmp_path, NAMES)
    engine = evaluator([case("a.nii.gz", REFERENCE, REFERENCE)], handler)
    engine.run()
    engine.run()
    assert len(handler.rows) == 2


def test_nothing_is_not_a_number_in_the_json(three):
    def numbers(value):
        return [n for v in value.values() for n in numbers(v)] if isinstance(value, dict) else [value]

    assert not [n for n in numbers(three[1]) if isinstance(n, float) and math.isnan(n)]
