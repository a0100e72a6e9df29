from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Lambdad
from PIL import Image

from medsaga.data import check_cases, write_decathlon_phantoms
from medsaga.data.__main__ import main
from medsaga.failures import CasesFailedError

from .. import forks
from .test_slice_cache import CALLS, VOLUME, count, write_dicom, write_itk


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- before a training -----------------------------------------------------------------------------------------------


def label_of_class_seven(case):
    label = np.zeros((6, 7, 5), np.uint8)
    label[2, 3, 1] = 7
    nib.save(nib.Nifti1Image(label, np.diag([-1.0, -1.0, 1.0, 1.0])), case["label"])


def test_bad_cases_of_all_parts_are_in_the_table_and_the_file(tmp_path, preprocessing, write_case):
    train, others = ([write_case(f"{part}{i}", i) for i in range(14)] for part in ("train", "other"))
    for case in (*train[2:], *others[3:]):
        label_of_class_seven(case)
    errors = tmp_path / "output" / "errors.csv"
    with pytest.raises(CasesFailedError) as caught:
        check_cases(train, others, preprocessing(), 3, tmp_path / "cache", 0, errors)
    assert [row["file"] for row in rows(errors)] == [case["label"] for case in (*train[2:], *others[3:])]
    lines = str(caught.value).splitlines()
    assert lines[0] == f"23 of 28 cases cannot be used, listed in {errors}:"
    table = [line for line in lines if line.startswith(str(tmp_path))]
    assert [line.split()[0] for line in table] == [row["file"] for row in rows(errors)][:20]
    assert all("label values 7" in line for line in table)
    assert len({line.index("label values") for line in table}) == 1  # a column
    assert f"... and 3 more in {errors}" in lines
    # all good: no list
    check_cases(train[:2], others[:3], preprocessing(), 3, tmp_path / "cache", 0, errors)
    assert not errors.exists()


def test_a_second_start_reads_nothing_but_what_changed(tmp_path, preprocessing, write_case):
    train, others = [write_case("a", 1)], [write_case("b", 2), write_case("c", 3)]
    used = preprocessing(extra=(Lambdad("image", count),))
    CALLS.clear()
    numbers = []
    for _ in range(2):
        check_cases(train, others, used, 3, tmp_path / "cache", 0, tmp_path / "errors.csv")
        numbers.append(len(CALLS))
    label_of_class_seven(others[1])
    with pytest.raises(CasesFailedError, match=others[1]["label"]):
        check_cases(train, others, used, 3, tmp_path / "cache", 0, tmp_path / "errors.csv")
    assert [*numbers, len(CALLS)] == [3, 3, 4]


PROCESS = """
import json, sys
import torch.distributed as dist
from medsaga.data import check_cases
from tests.data.conftest import _preprocessing
folder = sys.argv[1]
dist.init_process_group("gloo")
train, others = json.load(open(folder + "/cases.json"))
for cases in ([], others):
    try:
        check_cases(train, cases, _preprocessing(), 3, folder + "/cache", 0, folder + "/errors.csv")
        print("trains", flush=True)
    except BaseException as err:
        print(type(err).__name__, str(err).splitlines()[0], flush=True)
dist.destroy_process_group()
"""


def test_of_two_processes_the_first_reports_and_the_other_waits(tmp_path, write_case):
    train, others = [write_case("a", 1)], [write_case("b", 2)]
    label_of_class_seven(others[0])
    (tmp_path / "cases.json").write_text(json.dumps([train, others]))
    logs = [tmp_path / f"said{rank}" for rank in range(2)]
    words = [sys.executable, "-W", "ignore", "-c", PROCESS, str(tmp_path)]
    for process in forks.ranks(words, logs, Path(__file__).parents[2], errors=Path(os.devnull)):
        process.wait(300)
    first, second = (log.read_text().splitlines() for log in logs)
    assert first == [
        "trains",
        f"CasesFailedError 1 of 2 cases cannot be used, listed in {tmp_path}/errors.csv:",
    ]
    assert second == ["trains", "SystemExit 1"]


# --- python -m medsaga.data check ------------------------------------------------------------------------------------


def check(capsys, *words):
    """Exit code, table by file, all that was printed."""
    with pytest.raises(SystemExit) as caught:
        main(["check", *map(str, words)])
    return caught.value.code, capsys.readouterr().out


def table(path, root):
    return {str(Path(row["file"]).relative_to(root)): row for row in rows(path)}


@pytest.fixture
def folder(tmp_path):
    """Images of several kinds, all of them good."""
    root = tmp_path / "data"
    (root / "ct" / "more").mkdir(parents=True)
    write_dicom(root / "ct" / "series", VOLUME)
    write_itk(root / "ct" / "more" / "v.nrrd", VOLUME)
    sagittal = np.random.RandomState(0).uniform(size=(6, 40, 30)).astype(np.float32)
    nib.save(nib.Nifti1Image(sagittal, np.diag([-5.0, -1.0, 1.0, 1.0])), root / "thick.nii.gz")
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (9, 6, 3)).astype(np.uint8)).save(root / "photo.png")
    (root / "readme.txt").write_text("not an image")
    return root


def test_what_is_found_is_what_was_written(folder, tmp_path, capsys):
    code, said = check(capsys, folder, "--csv", tmp_path / "found.csv")
    assert code == 0
    found = table(tmp_path / "found.csv", folder)
    assert set(found) == {"ct/series", "ct/more/v.nrrd", "thick.nii.gz", "photo.png"}
    series = found["ct/series"]
    assert (series["kind"], series["size"], series["spacing"]) == ("DICOM CT", "5×7×4", "0.8×0.8×3")
    assert series["plane"] == "LPS, axial"
    assert (found["ct/more/v.nrrd"]["size"], found["ct/more/v.nrrd"]["plane"]) == ("5×7×4", "LPS, axial")
    assert (found["thick.nii.gz"]["spacing"], found["thick.nii.gz"]["plane"]) == ("5×1×1", "LPS, sagittal")
    photo = found["photo.png"]
    assert (photo["size"], photo["remarks"], photo["spacing"], photo["plane"]) == ("6×9", "RGB", "", "")
    # on the screen as well, and nothing of the patient
    assert all(name in said for name in found)
    assert "readme.txt" in said
    assert "P^1" not in said
    assert "4 images and labels, all of which can be used" in said


def test_bad_files_are_named_in_the_table(folder, tmp_path, capsys):
    (folder / "thick.nii.gz").write_bytes((folder / "thick.nii.gz").read_bytes()[:2000])
    next((folder / "ct" / "series").iterdir()).unlink()
    code, said = check(capsys, folder, "--csv", tmp_path / "found.csv")
    assert code == 1
    wrong = {name: row["wrong"] for name, row in table(tmp_path / "found.csv", folder).items() if row["wrong"]}
    assert set(wrong) <= {"thick.nii.gz", "ct/series"}
    assert "truncated" in wrong["thick.nii.gz"]
    assert wrong["thick.nii.gz"] in said


@pytest.fixture
def decathlon(tmp_path):
    return write_decathlon_phantoms(tmp_path / "phantoms", 3, (10, 12, 9))


def layouts(decathlon, tmp_path):
    """The same three cases as other tools lay them out."""
    yield "dataset.json", decathlon
    for images, labels in (("images", "masks"), ("images", "labels"), ("imagesTr", "labelsTr")):
        root = tmp_path / f"{images}_{labels}"
        shutil.copytree(decathlon / "imagesTr", root / images)
        shutil.copytree(decathlon / "labelsTr", root / labels)
        yield f"{images}, {labels}", root
    root = tmp_path / "bids"
    for i, path in enumerate(sorted((decathlon / "imagesTr").iterdir())):
        for source, target in ((path, f"sub-{i}/anat/sub-{i}_T1w"), (None, f"derivatives/sub-{i}/sub-{i}_msk")):
            file = root / f"{target}.nii.gz"
            file.parent.mkdir(parents=True)
            shutil.copy(source or decathlon / "labelsTr" / path.name, file)
    yield "derivatives", root


def test_labels_are_told_from_images_by_the_layout(decathlon, tmp_path, capsys):
    for name, root in layouts(decathlon, tmp_path):
        code, said = check(capsys, root, "--csv", tmp_path / "found.csv")
        assert code == 0, said
        assert name in said.splitlines()[0]
        found = rows(tmp_path / "found.csv")
        assert [row["kind"] for row in found] == ["nii.gz", "label, nii.gz"] * 3
        assert {row["remarks"] for row in found if row["kind"].startswith("label")} == {"values 0, 1, 2"}


def test_label_that_does_not_fit_its_image_is_wrong(decathlon, tmp_path, capsys):
    label = sorted((decathlon / "labelsTr").iterdir())[1]
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), label)
    code, _ = check(capsys, decathlon, "--csv", tmp_path / "found.csv")
    assert code == 1
    assert [row["file"] for row in rows(tmp_path / "found.csv") if row["wrong"]] == [str(label)]


def test_a_folder_of_labels_alone(decathlon, tmp_path, capsys):
    folder = shutil.copytree(decathlon / "labelsTr", tmp_path / "mine")
    name = min(folder.iterdir()).name
    image = nib.load(folder / name)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(0.5), image.affine), folder / name)
    code, _ = check(capsys, folder, "--label", "--csv", tmp_path / "found.csv")
    assert code == 1
    found = table(tmp_path / "found.csv", folder)
    assert "class numbers" in found.pop(name)["wrong"]
    assert {row["remarks"] for row in found.values()} == {"values 0, 1, 2"}
    assert check(capsys, folder)[0] == 0  # as images they are good


@pytest.fixture
def bundle(tmp_path):
    source = Path(__file__).resolve().parents[2] / "bundles" / "hippocampus" / "configs"
    return shutil.copytree(source, tmp_path / "bundle" / "configs").parent


def test_a_bundle_checks_by_its_own_preprocessing(decathlon, bundle, tmp_path, capsys):
    code, said = check(capsys, decathlon, "--bundle", bundle)
    assert code == 0
    assert "3 cases of bundle bundle" in said
    label = sorted((decathlon / "labelsTr").iterdir())[2]
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.uint8(3), image.affine), label)
    assert check(capsys, decathlon)[0] == 0  # class numbers, though not this bundle's
    code, _ = check(capsys, decathlon, "--bundle", bundle, "--csv", tmp_path / "found.csv")
    assert code == 1
    (wrong,) = (row for row in rows(tmp_path / "found.csv") if row["wrong"])
    assert wrong["file"] == str(label)
    assert "outside the 3 classes" in wrong["wrong"]
    assert len(list((bundle / "cache").glob("*-*-*.json"))) == 3  # the third as it was before


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_to_check_is_an_error(tmp_path, capsys, empty):
    folder = tmp_path / "folder"
    if empty:
        folder.mkdir()
    code, _ = check(capsys, folder)
    assert str(folder) in code
