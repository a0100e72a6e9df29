"""What was learnt from is known to the run and the model, and nothing else is scored, resumed or saved in silence."""

import csv
import json
import logging
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsaga.networks import SamSegmenter

from .bundles import SMALL, command, fails, paths, run, start

SHORT = {
    **SMALL,
    "train#trainer#max_epochs": 1,
    "val_interval": 1,
    "batch_size": 4,
    "test_patients": 3,
    "val_patients": 2,
    "train_patients": 4,
    "num_slices": 8,
    "min_classes": 0,
    "warmup_steps": 1,
    "rank": 4,
    "device": "$torch.device('cpu')",
}


def names(folder) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in (folder / "imagesTr").iterdir())


def drawn(folder, seed: int) -> dict[str, set[str]]:
    """The split of SHORT, by the rule that the project has always had."""
    patients = names(folder)
    np.random.RandomState(seed).shuffle(patients)
    return {"test": set(patients[:3]), "validation": set(patients[3:5]), "train": set(patients[5:9])}


def scored(work) -> set[str]:
    with open(work / "output" / "evaluation" / "metrics.csv") as file:
        return {row["case"] for row in csv.DictReader(file)}


def weights_of(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def without_record(path) -> None:
    """As trainings wrote it before."""
    torch.save(dict(weights_of(path)), path)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """A short run with seed 0; to be copied by who writes into it."""
    work = tmp_path_factory.mktemp("trained")
    run("training", "hippocampus", "train", **SHORT, **paths("hippocampus", phantoms, work))
    return work


@pytest.fixture
def work(trained, tmp_path):
    """A copy of the run."""
    shutil.copytree(trained, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def settings(phantoms, work):
    return {**SHORT, **paths("hippocampus", phantoms, work)}


@pytest.fixture
def folder(phantoms, tmp_path):
    """A copy of the data, to be changed."""
    shutil.copytree(phantoms, tmp_path / "data")
    return tmp_path / "data"


def list_cases(folder, cases) -> None:
    index = json.loads((folder / "dataset.json").read_text())
    index["training"] = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in cases]
    (folder / "dataset.json").write_text(json.dumps(index))


def add_case(folder) -> None:
    """A patient more, whose name comes first: another shuffle."""
    one = names(folder)[0]
    for part in ("imagesTr", "labelsTr"):
        shutil.copy(folder / part / f"{one}.nii.gz", folder / part / "another.nii.gz")
    list_cases(folder, names(folder))


def write_split(path, **parts):
    path.write_text(json.dumps({"train": [], "validation": [], "test": [], **{k: sorted(v) for k, v in parts.items()}}))
    return str(path)


# --- the split is written with the run and into the model --------------------------------------------------------


def test_the_split_stands_with_the_run_and_in_its_weights(trained, phantoms):
    record = json.loads((trained / "output" / "split.json").read_text())
    assert {part: set(record[part]) for part in ("test", "validation", "train")} == drawn(phantoms, 0)
    assert record["seed"] == 0 and record["class_names"] == ["background", "anterior", "posterior"]
    assert {entry["patient"] for entry in record["slices"]} <= drawn(phantoms, 0)["train"]
    assert sum(len(entry["slices"]) for entry in record["slices"]) == 8
    for entry in record["slices"]:
        depth = nib.load(phantoms / "imagesTr" / f"{entry['case']}.nii.gz").shape[2]
        assert all(0 <= index < depth for index in entry["slices"])
    for name in ("output/last.pt", "output/best.pt"):
        assert weights_of(trained / name)["record"] == record
    model = weights_of(trained / "model.pt")
    assert model._metadata["medsaga_record"] == record
    # and it stays what every tool loads
    assert all(isinstance(value, torch.Tensor) for value in model.values())
    network = SamSegmenter("vit_test", 64, 3, None, True)
    assert network.load_state_dict(model, strict=True)
    assert all(torch.equal(value, model[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("options", [{"seed": 5}, {"test_patients": 5}])
def test_evaluation_scores_the_recorded_patients_whatever_its_options_say(settings, work, phantoms, options):
    run("evaluating", "hippocampus", "train", "evaluate", **{**settings, **options})
    assert scored(work) == drawn(phantoms, 0)["test"]
    assert drawn(phantoms, 5)["test"] & drawn(phantoms, 0)["train"], "the other seed's patients have been learnt from"


def test_patients_that_the_model_knows_are_not_scored(settings, work, phantoms, tmp_path):
    parts = drawn(phantoms, 0)
    rest = set(names(phantoms)) - set.union(*parts.values())
    for part, reason in (("train", "it has learnt from"), ("validation", "chosen by validating with")):
        file = write_split(tmp_path / f"{part}.json", test={*rest, *list(parts[part])[:1]})
        message = fails("evaluating", "hippocampus", "train", "evaluate", **settings, split=file)
        assert file in message and f"1 of its {len(rest) + 1} test patients" in message and reason in message
    file = write_split(tmp_path / "rest.json", test=rest)
    run("evaluating", "hippocampus", "train", "evaluate", **settings, split=file)
    assert scored(work) == rest


def test_a_model_without_a_record_is_scored_with_a_warning(settings, work, phantoms, caplog):
    without_record(work / "model.pt")
    run("evaluating", "hippocampus", "train", "evaluate", **{**settings, "seed": 5})
    assert scored(work) == drawn(phantoms, 5)["test"]
    assert "nothing shows that the patients scored here are unseen" in caplog.text
    assert "nothing shows that these are unseen" in (work / "output" / "evaluation" / "metrics.md").read_text()


def test_a_changed_folder_changes_no_test_patient(settings, work, folder):
    test = drawn(folder, 0)["test"]
    add_case(folder)
    changed = {**settings, "dataset_dir": str(folder)}
    run("evaluating", "hippocampus", "train", "evaluate", **changed)
    assert scored(work) == test
    list_cases(folder, set(names(folder)) - {min(test)})
    message = fails("evaluating", "hippocampus", "train", "evaluate", **changed)
    assert "1 of its 3 test patients are not in the data folder" in message


def test_training_takes_the_patients_of_a_file(phantoms, tmp_path):
    chosen = {"train": names(phantoms)[:2], "validation": names(phantoms)[2:3], "test": names(phantoms)[3:5]}
    options = {**SHORT, **paths("hippocampus", phantoms, tmp_path), "train#trainer#max_epochs": 1}
    run("training", "hippocampus", "train", **options, split=write_split(tmp_path / "split.json", **chosen))
    record = json.loads((tmp_path / "output" / "split.json").read_text())
    assert {part: record[part] for part in chosen} == chosen
    run("evaluating", "hippocampus", "train", "evaluate", **options)
    assert scored(tmp_path) == set(chosen["test"])


def test_what_the_first_weights_learnt_from_counts_as_learnt(settings, work, phantoms, tmp_path):
    first = str(shutil.copy(work / "model.pt", tmp_path / "first.pt"))
    options = {**settings, "weights": first, "output_dir": str(tmp_path / "further")}
    message = fails("training", "hippocampus", "train", **{**options, "seed": 5})
    assert message.startswith("weights: ") and "have learnt from" in message
    parts = drawn(phantoms, 0)
    rest = set(names(phantoms)) - set.union(*parts.values())
    file = write_split(tmp_path / "further.json", train=rest, validation=parts["validation"], test=parts["test"])
    run("training", "hippocampus", "train", **options, split=file)
    file = write_split(tmp_path / "learnt.json", test=parts["train"])
    message = fails("evaluating", "hippocampus", "train", "evaluate", **settings, split=file)
    assert "4 of its 4 test patients" in message


# --- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 5}, "seed is 5, was 0"),
        ({"test_patients": 4}, "test_patients is 4, was 3"),
        ({"lr": 0.5, "batch_size": 2}, "batch_size is 2, was 4; lr is 0.5, was 0.001"),
        ({"rank": 8}, "rank is 8, was 4"),
        ({"num_slices": 9}, "num_slices is 9, was 8"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(settings, work, changed, named):
    before = (work / "output" / "last.pt").read_bytes()
    more = {"train#trainer#max_epochs": 2, "resume": True}
    message = fails("training", "hippocampus", "train", **{**settings, **more, **changed})
    assert named in message and str(work / "output" / "last.pt") in message
    assert (work / "output" / "last.pt").read_bytes() == before


def test_more_epochs_and_what_changes_no_result_are_fine(settings, work, caplog):
    safe = {"val_interval": 2, "patience": 3, "train#trainer#max_epochs": 2, "state_bits": 8}
    run("training", "hippocampus", "train", **{**settings, **safe, "resume": True})
    assert weights_of(work / "output" / "last.pt")["progress"]["epoch"] == 2
    assert "max_epochs is 2, was 1" in caplog.text and "state_bits is 8, was 32" in caplog.text
    assert "val_interval" not in caplog.text


def test_a_run_keeps_its_patients_when_the_folder_changes(settings, work, folder):
    add_case(folder)
    changed = {**settings, "dataset_dir": str(folder), "resume": True}
    message = fails("training", "hippocampus", "train", **changed)
    assert "Cannot resume" in message and "train patients" in message and "The data folder or the split" in message
    assert not any(name in message for name in names(folder))
    run("training", "hippocampus", "train", **changed, split=str(work / "output" / "split.json"))


def test_an_older_run_is_resumed_with_a_warning(settings, work, caplog):
    last = weights_of(work / "output" / "last.pt")
    torch.save({key: last[key] for key in last if key not in ("settings", "record")}, work / "output" / "last.pt")
    run("training", "hippocampus", "train", **settings, resume=True)
    assert "does not say with which settings" in caplog.text and "does not say which patients" in caplog.text


# --- losses that are no numbers ----------------------------------------------------------------------------------


def test_a_rate_that_diverges_ends_the_run_with_an_error(phantoms, tmp_path):
    options = {**SHORT, **paths("hippocampus", phantoms, tmp_path), "lr": 1e6, "train#trainer#max_epochs": 2}
    process = start(command("training", "hippocampus", "train", **options), tmp_path / "log", OMP_NUM_THREADS="1")
    assert process.wait(300) != 0
    log = (tmp_path / "log").read_text()
    assert (
        "Epoch 1, iteration 2: the loss is " in log and "Try lower learning rates (a tenth of lr and encoder_lr" in log
    )
    assert not (tmp_path / "model.pt").exists() and not (tmp_path / "output" / "last.pt").exists()


# --- what no training slice shows, and metrics of nothing --------------------------------------------------------


def relabel(folder, cases, change) -> None:
    for name in cases:
        path = folder / "labelsTr" / f"{name}.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def test_what_was_never_seen_is_said_at_the_start_and_in_the_report(folder, tmp_path, caplog):
    parts = drawn(folder, 0)
    relabel(folder, parts["train"], lambda label: np.where(label == 2, 0, label))
    empty = min(parts["train"])
    relabel(folder, [empty], np.zeros_like)
    options = {**SHORT, **paths("hippocampus", folder, tmp_path), "num_slices": 1000}
    with caplog.at_level(logging.WARNING):
        run("training", "hippocampus", "train", **options)
    assert "No training slice shows: posterior." in caplog.text
    label = os.path.join("labelsTr", f"{empty}.nii.gz")
    assert "1 of 4 training labels show background only" in caplog.text and label in caplog.text
    record = json.loads((tmp_path / "output" / "split.json").read_text())
    assert record["unseen_classes"] == ["posterior"] and record["empty_labels"] == [empty]
    assert any("num_slices=1000" in line for line in record["warnings"])
    run("evaluating", "hippocampus", "train", "evaluate", **options)
    report = (tmp_path / "output" / "evaluation" / "metrics.md").read_text()
    assert (
        "The model has never seen these classes: posterior." in report
        and "num_slices=1000" in report
        and empty not in report
    )


def test_a_metric_over_nothing_is_no_number(folder, tmp_path, caplog):
    parts = drawn(folder, 0)
    relabel(folder, parts["validation"] | parts["test"], np.zeros_like)
    options = {**SHORT, **paths("hippocampus", folder, tmp_path)}
    run("training", "hippocampus", "train", **options)
    events = EventAccumulator(str(tmp_path / "output" / "tensorboard"))
    events.Reload()
    assert all(np.isnan(event.value) for event in events.Scalars("val_mean_dice"))
    assert weights_of(tmp_path / "output" / "last.pt")["selection"]["validated_epoch"] == 0
    assert (tmp_path / "model.pt").is_file()
    run("evaluating", "hippocampus", "train", "evaluate", **options)
    summary = json.loads((tmp_path / "output" / "evaluation" / "metrics.json").read_text())
    assert summary["mean"]["hd95"] == {"mean": None, "std": None, "n": 0}


# --- what a user reads last ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_id", "files", "said"),
    [
        ("training", ["train"], "FileNotFoundError: "),
        ("evaluating", ["train", "evaluate"], "FileNotFoundError: "),
        ("evaluating", ["inference"], "FileNotFoundError: "),
    ],
)
def test_the_cause_is_the_last_line_without_a_traceback(run_id, files, said, tmp_path):
    options = {**paths("hippocampus", tmp_path / "nowhere", tmp_path), "device": "$torch.device('cpu')"}
    process = start(command(run_id, "hippocampus", *files, **options), tmp_path / "log", OMP_NUM_THREADS="1")
    assert process.wait(300) == 1
    lines = (tmp_path / "log").read_text().strip().splitlines()
    assert lines[-1].startswith(said) and str(tmp_path) in lines[-1]
    assert not any(line.startswith(("Traceback", "  File")) for line in lines)
    assert any("--traceback true" in line for line in lines)
