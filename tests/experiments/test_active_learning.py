import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from medsaga.data import decathlon_datalist, split_by_patient, write_decathlon_phantoms
from medsaga.experiments import active_learning, active_learning_run, label_server
from medsaga.experiments.active_learning import points, table
from medsaga.experiments.active_learning_run import Run, Session
from medsaga.experiments.overrides import override
from medsaga.networks import SamSegmenter
from medsaga.reading import name_without_suffix

from .. import forks
from ..integration.bundles import ROOT

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

SMALL = ["network_def#encoder=vit_test", "image_size=64", "weights=null", "test_patients=2", "warmup_steps=1"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_decathlon_phantoms(tmp_path_factory.mktemp("data"), cases=6, shape=(24, 32, 6))


def state(clicks, **dice):
    """What a run leaves: clicks of each label, Dice of the test patients by number of labels."""
    trainings = [
        {"labels": int(number[1:]), "seconds": 60.0, "result": "", "dice": values} for number, values in dice.items()
    ]
    return {"labels": [{"image": str(i), "clicks": n} for i, n in enumerate(clicks)], "trainings": trainings}


STATES = {
    Run("random", 0): state([10, 10, 5], n1=[0.4, 0.6], n3=[0.7, 0.7]),
    Run("random", 1): state([20, 10, 5], n1=[0.5, 0.7], n3=[0.8, 0.8]),
    Run("mixed", 0): state([12, 2, 3], n1=[0.5, 0.7], n3=[0.9, 0.7]),
    Run("mixed", 1): state([14, 2, 3], n1=[0.9, 0.9], n3=[0.9, 0.9]),
    Run("entropy", 1): state([8], n1=[0.6, 0.6]),
}


def test_table_of_runs_with_known_results():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(points(STATES, [1, 3])).splitlines()]
    assert rows[2:] == [
        ["random", "1", "0.550 ± 0.071", "–", "15 ± 7", "2"],
        ["random", "3", "0.750 ± 0.071", "–", "30 ± 7", "2"],
        ["entropy", "1", "0.600", "+0.000", "8", "1"],  # against seed 1 of random
        ["mixed", "1", "0.750 ± 0.212", "+0.200 ± 0.141", "13 ± 1", "2"],
        ["mixed", "3", "0.850 ± 0.071", "+0.100 ± 0.000", "18 ± 1", "2"],
    ]


def test_numbers_of_labels_that_are_not_asked_for_are_left_out():
    assert set(points(STATES, [3])["random"]) == {3}


def test_a_session_has_images_without_labels_and_none_of_the_test_patients(phantoms, tmp_path):
    options = dict(map(override, SMALL))
    session = Session(Run("random", 1), ROOT / "bundles" / "hippocampus", phantoms, tmp_path, options)
    split = split_by_patient(decathlon_datalist(phantoms), 2, 0, None, 1)
    studies = {name_without_suffix(p) for p in (session.folder / "studies").iterdir()}
    assert studies == {case["patient"] for case in split["train"]}
    assert not studies & {case["patient"] for case in session.test}
    assert len(studies) == 4 and len(session.test) == 2
    for name in ("train", "inference"):
        config = json.loads((session.bundle / "configs" / f"{name}.json").read_text())
        assert config["network_def"]["encoder"] == "vit_test" and config["image_size"] == 64
    assert config.get("seed") is None
    config = json.loads((session.bundle / "configs" / "train.json").read_text())
    assert config["seed"] == 1 and config["weights"] is None
    assert not (session.bundle / "models").exists()
    with pytest.raises(RuntimeError, match="random_seed1 holds a run with.*--work"):
        Session(Run("random", 1), ROOT / "bundles" / "hippocampus", phantoms, tmp_path, {**options, "lr": 1})


def test_what_is_done_is_shown_and_not_played_again(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(active_learning_run, "LabelServer", None)  # to start one would fail
    options = dict(map(override, SMALL))
    work = tmp_path / "work" / "hippocampus"
    for run in (Run("random", 0), Run("mixed", 0)):
        session = Session(run, ROOT / "bundles" / "hippocampus", phantoms, work, options)
        session.state.update(STATES[run])
        session._write()
    words = ["--dataset_dir", str(phantoms), "--strategies", "random,mixed", "--seeds", "0", "--labels", "1,3"]
    words += ["--override", *SMALL, "--work", str(tmp_path / "work"), "--output", str(tmp_path / "docs")]
    active_learning.main(words)
    text = (tmp_path / "docs" / "active_learning.md").read_text()
    assert "| mixed | 3 | 0.800 | +0.100 | 17 | 1 |" in text
    assert "4 images without labels" in text and "2 test patients" in text
    assert "python -m medsaga.experiments.active_learning --dataset_dir" in text
    assert (tmp_path / "docs" / "figures" / "active_learning.png").stat().st_size > 1000
    values = json.loads((tmp_path / "docs" / "active_learning.json").read_text())
    assert [t["labels"] for t in values["mixed_seed0"]["trainings"]] == [1, 3]
    words[3] = "random,mixed,entropy"  # the last has not begun
    active_learning.main([*words, "--report"])
    again = (tmp_path / "docs" / "active_learning.md").read_text()
    assert again == text.replace("random,mixed", "random,mixed,entropy")
    assert not (work / "entropy_seed0").exists()


def test_an_unknown_strategy_is_named(capsys):
    with pytest.raises(SystemExit):
        active_learning.main(["--dataset_dir", "x", "--strategies", "random,best"])
    assert "no strategy best; the strategies are random, first" in capsys.readouterr().err


def fork(words, stdout, stderr, start_new_session, env):
    return forks.start(words, Path(stdout.name), ROOT, env, start_new_session)


@pytest.mark.integration
def test_a_run_with_a_real_server_that_is_stopped_and_resumed(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # a fork's imports cost nothing
    monkeypatch.setattr(label_server, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": fork}))
    words = ["--dataset_dir", str(phantoms), "--strategies", "mixed", "--seeds", "0"]
    words += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "docs")]
    # published weights that fit the small encoder do not exist: fresh ones in the form of published ones
    weights = tmp_path / "fresh.pt"
    torch.manual_seed(0)
    state = SamSegmenter("vit_test", 64, 4).state_dict()
    torch.save({key: value for key, value in state.items() if key not in ("pixel_mean", "pixel_std")}, weights)
    words += ["--slices", "5", "--override", *SMALL, f"weights={weights}"]
    words += ["batch_size=1", "prompt_probability=0", "--labels"]  # quick steps
    folder = tmp_path / "work" / "hippocampus" / "mixed_seed0"

    active_learning.main([*words, "1"])
    before = json.loads((folder / "run.json").read_text())
    truth = {case["patient"]: np.asarray(nib.load(case["label"]).dataobj) for case in decathlon_datalist(phantoms)}
    (first,) = before["labels"]
    assert first["strategy_used"] == "representative"
    assert len(first["slices"]) == 5
    pairs = sum((truth[first["image"]][..., first["slices"]] == c).any(axis=(0, 1)).sum() for c in (1, 2))
    assert 2 * pairs <= first["clicks"] <= 4 * pairs

    # as if it had been killed between writing down a label and submitting it
    (folder / "studies" / "labels" / "final" / f"{first['image']}.nii.gz").unlink()
    active_learning.main([*words, "1,2"])
    after = json.loads((folder / "run.json").read_text())
    assert after["labels"][0] == first and after["trainings"][0] == before["trainings"][0]
    assert after["labels"][1]["strategy_used"] == "mixed"
    assert [len(training["dice"]) for training in after["trainings"]] == [2, 2]
    assert all(0 <= d <= 1 for training in after["trainings"] for d in training["dice"])
    info = json.loads((folder / "studies" / "datastore_v2.json").read_text())["objects"][first["image"]]
    assert info["labels"]["final"]["info"]["labelled_slices"] == first["slices"]
    submitted = {name_without_suffix(path) for path in (folder / "studies" / "labels" / "final").iterdir()}
    assert submitted == {label["image"] for label in after["labels"]}
