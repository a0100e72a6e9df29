"""Training with images without labels, by MONAI's own command."""

import json
from pathlib import Path

import pytest
import torch

from medsaga.data import decathlon_datalist, unlabelled_pool
from medsaga.memory import Setup, measure, predict

from .bundles import FEW_PATIENTS, ROOT, fails, paths, run

OVERLAY = "../../methods/semi"  # as seen from a bundle's configs
SHORT = {
    **FEW_PATIENTS,
    "num_slices": 8,
    "prompt_probability": 0.5,
    "rampup_steps": 0,
    "lr_scheduler#max_steps": 4,  # also of the run that ends after its first epoch
}


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    work = tmp_path_factory.mktemp("semi")
    overrides = {**SHORT, **paths("hippocampus", phantoms, work)}
    run("training", "hippocampus", "train", OVERLAY, **overrides)
    return overrides, work


def test_no_patient_of_validation_or_test_is_learnt_from(trained, phantoms):
    _, work = trained
    split = json.loads((work / "output" / "split.json").read_text())
    everyone = {case["patient"] for case in decathlon_datalist(phantoms)}
    assert set(split["unlabelled"]) == everyone - set(split["validation"]) - set(split["test"])
    assert set(split["train"]) < set(split["unlabelled"])


def test_it_resumes_to_the_same_weights_and_is_another_training_than_without(trained, tmp_path):
    overrides, work = trained
    stopped = {**overrides, "output_dir": str(tmp_path / "output"), "model_path": str(tmp_path / "model.pt")}
    run("training", "hippocampus", "train", OVERLAY, **{**stopped, "train#trainer#max_epochs": 1})
    run("training", "hippocampus", "train", OVERLAY, **stopped, resume=True)
    resumed, whole = (torch.load(f / "output" / "last.pt", weights_only=True) for f in (tmp_path, work))
    for part in ("network", "average"):
        assert all(torch.equal(value, resumed[part][key]) for key, value in whole[part].items())
    alone = {key: value for key, value in stopped.items() if key != "rampup_steps"}
    run("training", "hippocampus", "train", **alone)
    other = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert any(not torch.equal(value, other["network"][key]) for key, value in whole["network"].items())


def test_it_evaluates_without_the_overlay(trained):
    overrides, work = trained
    plain = {key: value for key, value in overrides.items() if key != "rampup_steps"}
    run("evaluating", "hippocampus", "train", "evaluate", **plain)
    assert json.loads((work / "output" / "evaluation" / "metrics.json").read_text())["mean"]["dice"]["n"] == 1


def test_without_an_average_there_is_no_teacher(phantoms, tmp_path):
    overrides = {**SHORT, **paths("hippocampus", phantoms, tmp_path), "ema_momentum": None}
    assert "set ema_momentum" in fails("training", "hippocampus", "train", OVERLAY, **overrides)


def test_more_images_come_from_a_folder(phantoms, tmp_path):
    datalist = decathlon_datalist(phantoms)
    parts = {"train": datalist[:1], "validation": datalist[1:2], "test": datalist[2:3]}
    (tmp_path / "more").mkdir()
    for case in (datalist[3], datalist[2]):  # the second is a test patient's
        source = case["image"]
        (tmp_path / "more" / source.rpartition("/")[2]).write_bytes(Path(source).read_bytes())
    pool = unlabelled_pool(datalist[:3], parts, tmp_path / "more")
    names = [case["image"].rpartition("/")[2] for case in pool]
    assert names == [datalist[0]["image"].rpartition("/")[2], datalist[3]["image"].rpartition("/")[2]]
    assert all("label" not in case for case in pool)
    with pytest.raises(ValueError, match="--unlabelled_dir"):
        unlabelled_pool(datalist[1:3], {**parts, "train": []})


def test_patients_that_a_split_keeps_out_are_not_learnt_from(phantoms, tmp_path):
    """Of no part of the split, as the test patients of the bundle when methods are chosen by other folds."""
    datalist = decathlon_datalist(phantoms)
    parts = {"train": datalist[:1], "validation": [], "test": datalist[1:2]}
    split = {part: [case["patient"] for case in cases] for part, cases in parts.items()}
    (tmp_path / "plain.json").write_text(json.dumps(split))
    (tmp_path / "split.json").write_text(json.dumps({**split, "kept_out": [datalist[2]["patient"]]}))
    every, fewer = (
        unlabelled_pool(datalist[:4], parts, split=tmp_path / f"{name}.json") for name in ("plain", "split")
    )
    assert [case["patient"] for case in every] == [datalist[i]["patient"] for i in (0, 2, 3)]
    assert [case["patient"] for case in fewer] == [datalist[i]["patient"] for i in (0, 3)]


def test_its_memory_is_predicted():
    files = (str(ROOT / "bundles" / "methods" / "semi.json"),)
    small = {"network_def#encoder": "vit_test", "image_size": 64, "device": "$torch.device('cpu')", "batch_size": 2}
    setup = Setup(str(ROOT / "bundles" / "hippocampus"), files, small)
    alone = Setup(str(ROOT / "bundles" / "hippocampus"), (), small)
    predicted = predict(setup)
    assert predicted == pytest.approx(measure(setup).split, rel=0.02)
    assert sum(predicted.values()) > sum(predict(alone).values())
