"""A method chosen by cross-validation, on phantoms."""

import json

import pandas as pd
import pytest

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import bundle_run
from medsaga.experiments.few_shot.__main__ import main
from medsaga.experiments.few_shot.choose import _write, choose, folds_of, recommended

from ..integration.bundles import ROOT
from .test_few_shot import SMALL, call_in_this_process


def test_each_patient_is_scored_once_by_a_network_that_has_not_seen_it():
    patients = {f"p{i}" for i in range(7)}
    splits = folds_of(patients, 3, seed=0)
    assert sorted(name for split in splits for name in split["test"]) == sorted(patients)
    assert all(set(split["train"]) == patients - set(split["test"]) for split in splits)
    assert folds_of(patients, 3, seed=1) != splits


@pytest.mark.parametrize("folds", [1, 8])
def test_folds_that_cannot_be_are_refused(folds):
    with pytest.raises(ValueError, match="7 labelled patients cannot be split"):
        folds_of({f"p{i}" for i in range(7)}, folds, 0)


@pytest.mark.parametrize(
    "other, method",
    [
        ([0.9, 0.8, 0.85, 0.82], "other"),  # better everywhere
        ([0.6, 0.6, 0.6, 0.6], "first"),
        ([0.95, 0.55, 0.9, 0.63], "first"),  # better on average, by less than the error
    ],
)
def test_another_than_the_first_has_to_be_better_by_more_than_the_error(other, method):
    cases = pd.DataFrame({"first": [0.8, 0.7, 0.75, 0.72], "other": other})
    assert recommended(cases, ["first", "other"])[0] == method


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choose")
    write_decathlon_phantoms(folder / "data" / "Task04_Hippocampus", cases=7, shape=(24, 32, 8))
    settings = {**SMALL, "num_slices": 6}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("MEDSAGA_DATA", str(folder / "data"))
        patch.setattr(bundle_run, "run_logged", call_in_this_process)
        words = ["bundles/hippocampus", "--choose", "--folds", "2", "--work", str(folder)]
        main([*words, "--methods", "MedSAGa", "self-training", "--override", *overrides])
    return folder / "choose_hippocampus" / "choice.md"


def test_the_page_recommends_a_method_and_its_command(page):
    text = page.read_text()
    assert "over 4 cases of 2 folds" in text, "of seven three are for the test"
    assert "| MedSAGa |" in text and "| self-training |" in text
    assert "Recommended: **" in text and "python -m monai.bundle run training" in text
    rows = pd.read_csv(page.with_suffix(".csv"))
    cases = rows.groupby("method")["case"].nunique()
    assert dict(cases) == {"MedSAGa": 4, "self-training": 4}
    shown = rows[rows["method"] == "MedSAGa"].groupby("case")["dice"].mean().mean()
    assert f"| MedSAGa | {shown:.3f} ±" in text
    assert page.with_suffix(".png").is_file()


def test_test_patients_take_no_part(page):
    splits = [json.loads(path.read_text()) for path in sorted(page.parent.glob("fold?.json"))]
    used = {name for split in splits for part in ("train", "validation", "test") for name in split[part]}
    record = json.loads((page.parent / "medsaga_fold0" / "output" / "split.json").read_text())
    assert all(len(split["kept_out"]) == 3 and not used & set(split["kept_out"]) for split in splits)
    assert len(used) == 4 and set(record["train"]) | set(record["test"]) == used


def test_the_teacher_is_the_first_methods_network_of_the_same_fold(page):
    for fold in range(2):
        own = page.parent / f"self-training_fold{fold}"
        teacher = json.loads((own / "options.json").read_text())["teacher"]
        assert teacher == str(page.parent / f"medsaga_fold{fold}" / "model.pt")
        split = json.loads((own / "output" / "split.json").read_text())
        labelled = {path.name.removesuffix("_seg.nii.gz") for path in (own / "output" / "teacher_labels").glob("*.gz")}
        assert labelled == set(split["train"]) == set(split["learnt_before"]), "test patients are kept out"


def test_what_is_recommended_is_both_trainings(page):
    rows = pd.read_csv(page.with_suffix(".csv"))
    rows.loc[rows["method"] == "self-training", "dice"] = 1.0
    commands = _write(rows, ["MedSAGa", "self-training"], page.parent, ROOT / "bundles" / "hippocampus").read_text()
    assert (
        "training --config_file \"['bundles/hippocampus/configs/train.json']\" --model_path output/teacher.pt"
        in commands
    )
    assert "'bundles/methods/self_training.json']\" --teacher output/teacher.pt" in commands


def test_an_unknown_method_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_decathlon_phantoms(tmp_path / "data" / "Task04_Hippocampus", cases=7, shape=(24, 32, 8))
    monkeypatch.setenv("MEDSAGA_DATA", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="no method nnU-Net; the methods are MedSAGa"):
        choose("hippocampus", tmp_path, methods=["nnU-Net"], options=SMALL)
