"""A run goes on as it was started, or says why not."""

from __future__ import annotations

import json

import pytest
import torch

from .test_training_state import Run, equal

RECORD = {
    "train": ["a", "b"],
    "validation": ["c"],
    "test": ["d"],
    "learnt_before": [],
    "labelled": True,
    "slices": [{"patient": "a", "case": "a", "slices": [1, 2]}],
    "class_names": ["background", "one"],
}
SETTINGS = {"seed": 0, "lr": 0.05, "rank": None, "max_epochs": 2, "state_bits": 32}


def started(folder, **changes):
    return Run(folder, epochs=2, **{"record": RECORD, "settings": SETTINGS, **changes})()


def test_what_was_learnt_from_stands_in_every_file(tmp_path):
    run = started(tmp_path, metrics=[0.1, 0.2])
    assert run.files() == ["best.pt", "last.pt", "models/model.pt", "split.json"]
    assert json.loads((tmp_path / "split.json").read_text()) == RECORD
    for name in ("last.pt", "best.pt"):
        assert run.load(name)["record"] == RECORD and run.load(name)["settings"] == SETTINGS
    assert equal(dict(run.load("models/model.pt")), dict(run.network.state_dict()))
    assert run.load("models/model.pt")._metadata["medsaga_record"] == RECORD


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 5}, r"last\.pt: seed is 5, was 0\. Resume with the settings"),
        ({"lr": 0.1, "rank": 4}, r"lr is 0\.1, was 0\.05; rank is 4, was None"),
        ({"max_epochs": 1}, "max_epochs is 1, was 2"),
    ],
)
def test_settings_that_decide_the_result_are_refused_by_name(tmp_path, changes, named):
    started(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=named):
        started(tmp_path, resume=True, settings={**SETTINGS, **changes})
    assert all(path.read_bytes() == content for path, content in before.items())


def test_safe_ones_are_named_and_taken(tmp_path, caplog):
    started(tmp_path)
    settings = {**SETTINGS, "max_epochs": 3, "state_bits": 8, "new": 1}
    run = Run(tmp_path, epochs=3, resume=True, record=RECORD, settings=settings)()
    assert run.epoch_of("last.pt") == 3 and run.load("last.pt")["settings"] == settings
    assert "max_epochs is 3, was 2" in caplog.text and "follow the longer run's schedule" in caplog.text
    assert "state_bits is 8, was 32" in caplog.text


def test_rates_after_more_epochs_are_those_of_the_longer_run(tmp_path):
    whole = Run(tmp_path / "whole", epochs=3)()
    Run(tmp_path / "parts", epochs=2)()
    longer = Run(tmp_path / "parts", epochs=3, resume=True)()
    rates = {step: rate for step, (rate, _) in whole.watch.seen.items()}
    # the first step's rate was still set by the shorter run
    assert [longer.watch.seen[step][0] for step in (8, 9)] == [rates[step] for step in (8, 9)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": ["a", "x"]}, "train patients: 1 are no longer among them, 1 are new"),
        ({"test": [], "validation": ["c", "y", "z"]}, "validation patients: 0 .*, 2 are new; test patients: 1 are no"),
        ({"slices": []}, "the training slices have changed"),
        ({"class_names": ["background", "two"]}, "class_names are .*two.*, were .*one"),
    ],
)
def test_other_patients_and_slices_are_refused_without_names(tmp_path, changes, named):
    started(tmp_path)
    with pytest.raises(ValueError, match=named) as caught:
        started(tmp_path, resume=True, record={**RECORD, **changes})
    assert f"--split {tmp_path / 'split.json'}" in str(caught.value)
    assert "'x'" not in str(caught.value)
    assert json.loads((tmp_path / "split.json").read_text()) == RECORD


def test_what_the_first_weights_learnt_from_is_kept(tmp_path):
    started(tmp_path, record={**RECORD, "learnt_before": ["old"]})
    run = Run(tmp_path, epochs=3, resume=True, record=RECORD)()
    assert run.load("last.pt")["record"]["learnt_before"] == ["old"]


def test_an_older_run_goes_on_with_a_warning(tmp_path, caplog):
    Run(tmp_path, epochs=1)()
    run = started(tmp_path, resume=True)
    assert "does not say with which settings" in caplog.text and "does not say which patients" in caplog.text
    assert run.load("last.pt")["record"] == RECORD and run.load("last.pt")["settings"] == SETTINGS


def test_tuples_and_devices_are_compared_as_they_are_written(tmp_path):
    written = {**SETTINGS, "size": [1, 2], "device": "cpu"}
    run = started(tmp_path, settings={**SETTINGS, "size": (1, 2), "device": torch.device("cpu")})
    assert run.load("last.pt")["settings"] == written
    run = started(tmp_path, settings={**SETTINGS, "size": [1, 2], "device": torch.device("cpu")}, resume=True)
    assert run.load("last.pt")["settings"] == written
    with pytest.raises(ValueError, match=r"size is \[1, 3\], was \[1, 2\]"):
        started(tmp_path, settings={**written, "size": (1, 3)}, resume=True)
