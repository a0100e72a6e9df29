"""Training on whole volumes that another model has labelled, by MONAI's own command."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medsaga.data import decathlon_datalist

from .bundles import FEW_PATIENTS, fails, paths, run

OVERLAY = "../../methods/self_training"  # as seen from a bundle's configs
SHORT = {**FEW_PATIENTS, "num_slices": 6, "prompt_probability": 0, "largest_component": []}
STUDENT = {**SHORT, "lr_scheduler#max_steps": 4}  # also of the run that ends after its first epoch


@pytest.fixture(scope="module")
def teacher(phantoms, tmp_path_factory):
    work = tmp_path_factory.mktemp("teacher")
    run("training", "hippocampus", "train", **SHORT, **paths("hippocampus", phantoms, work))
    return work


@pytest.fixture(scope="module")
def trained(phantoms, teacher, tmp_path_factory):
    work = tmp_path_factory.mktemp("student")
    overrides = {**STUDENT, "teacher": str(teacher / "model.pt"), **paths("hippocampus", phantoms, work)}
    run("training", "hippocampus", "train", OVERLAY, **overrides)
    return overrides, work


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_the_teacher_labels_all_but_validation_and_test(trained, phantoms):
    _, work = trained
    split = json.loads((work / "output" / "split.json").read_text())
    everyone = {case["patient"] for case in decathlon_datalist(phantoms)}
    labelled = {path.name.removesuffix("_seg.nii.gz") for path in (work / "output" / "teacher_labels").glob("*.gz")}
    assert labelled == set(split["unlabelled"]) == everyone - set(split["validation"]) - set(split["test"])
    assert sum(len(case["slices"]) for case in split["slices"]) == 6, "of a person's labels"
    assert set(split["learnt_before"]) == set(split["train"]), "what the teacher has learnt from"


def test_slices_that_a_person_has_labelled_keep_their_label(trained, teacher, phantoms, tmp_path):
    _, work = trained
    small = {key: STUDENT[key] for key in ("network_def#encoder", "image_size", "largest_component")}
    own = {**paths("hippocampus", phantoms / "imagesTr", tmp_path), "model_path": str(teacher / "model.pt")}
    own["output_dir"] = str(tmp_path / "predicted")
    del own["cache_dir"]
    run("evaluating", "hippocampus", "inference", **small, **own)
    split = json.loads((work / "output" / "split.json").read_text())
    shown = {case["case"]: case["slices"] for case in split["slices"]}
    assert shown
    differing = 0
    for name in split["unlabelled"]:
        label = values(work / "output" / "teacher_labels" / f"{name}_seg.nii.gz")
        expected = values(tmp_path / "predicted" / f"{name}_seg.nii.gz").copy()
        truth, slices = values(phantoms / "labelsTr" / f"{name}.nii.gz"), shown.get(name, [])
        differing += (truth[..., slices] != expected[..., slices]).sum()
        expected[..., slices] = truth[..., slices]  # the phantoms' slices lie along the third axis, upwards
        np.testing.assert_array_equal(label, expected)
    assert differing, "else nothing had to be kept"
    images = [nib.load(phantoms / "imagesTr" / f"{split['train'][0]}.nii.gz")]
    images.append(nib.load(work / "output" / "teacher_labels" / f"{split['train'][0]}_seg.nii.gz"))
    np.testing.assert_allclose(images[0].affine, images[1].affine)


def test_it_resumes_to_the_same_weights_by_the_same_labels(trained, tmp_path):
    overrides, work = trained
    stopped = {**overrides, "output_dir": str(tmp_path / "output"), "model_path": str(tmp_path / "model.pt")}
    run("training", "hippocampus", "train", OVERLAY, **{**stopped, "train#trainer#max_epochs": 1})
    labels = {path: path.stat().st_mtime_ns for path in (tmp_path / "output" / "teacher_labels").glob("*.gz")}
    said = fails("training", "hippocampus", "train", OVERLAY, **stopped, resume=True, teacher_share=0.5)
    assert "teacher_share is 0.5, was 1.0" in said
    run("training", "hippocampus", "train", OVERLAY, **stopped, resume=True)
    assert labels == {path: path.stat().st_mtime_ns for path in labels}
    resumed, whole = (torch.load(f / "output" / "last.pt", weights_only=True) for f in (tmp_path, work))
    for part in ("network", "average"):
        assert all(torch.equal(value, resumed[part][key]) for key, value in whole[part].items())


def test_it_learns_from_the_teachers_labels(trained, tmp_path):
    overrides, work = trained
    other = {**overrides, "output_dir": str(tmp_path / "output"), "model_path": str(tmp_path / "model.pt")}
    run("training", "hippocampus", "train", OVERLAY, **other, teacher_share=0)
    alone, whole = (torch.load(f / "output" / "last.pt", weights_only=True)["network"] for f in (tmp_path, work))
    assert any(not torch.equal(value, alone[key]) for key, value in whole.items())


def test_a_teacher_that_knows_test_patients_is_refused(trained, phantoms, tmp_path):
    overrides, work = trained
    split = json.loads((work / "output" / "split.json").read_text())
    split = {"train": split["test"], "validation": split["validation"], "test": split["train"][:1]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    own = {**overrides, "output_dir": str(tmp_path / "output"), "split": str(tmp_path / "split.json")}
    assert "have learnt from 1 of the 1 test patients" in fails("training", "hippocampus", "train", OVERLAY, **own)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("teacher", None, "--teacher"),
        ("teacher", "nothing.pt", "nothing.pt"),
        ("teacher", "lite_medsam", "--teacher"),
        ("teacher_share", 2, "teacher_share must be from 0 to 1, got 2"),
    ],
)
def test_what_is_wrong_is_said(trained, tmp_path, key, value, said):
    overrides, _ = trained
    own = {**overrides, "output_dir": str(tmp_path / "output"), "model_path": str(tmp_path / "model.pt")}
    assert said in fails("training", "hippocampus", "train", OVERLAY, **{**own, key: value})
    assert not (tmp_path / "model.pt").exists()
