"""Layouts with a dataset.json: the Decathlon's, AMOS', nnU-Net's."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsaga.data import decathlon_datalist, nnunet_datalist, recognise
from medsaga.data.layouts import UnknownLayoutError

from .conftest import again, write_tree

L = (1, 2)


def index(folder: Path, **content) -> Path:
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def decathlon(tmp_path, **content):
    write_tree(tmp_path, {f"{kind}Tr/a_{n}.nii.gz": v for n in range(3) for kind, v in (("images", ()), ("labels", L))})
    listed = [{"image": f"./imagesTr/a_{n}.nii.gz", "label": f"./labelsTr/a_{n}.nii.gz"} for n in range(3)]
    return index(tmp_path, **{"training": listed, **content})


def test_what_the_index_says(tmp_path):
    write_tree(tmp_path, {"imagesTs/b.nii.gz": ()})
    folder = decathlon(
        tmp_path,
        name="Organs",
        description="$(rm -rf /)",
        licence="CC BY 4.0",
        reference="someone",
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver", "2": "tumour"},
        test=["./imagesTs/b.nii.gz"],
    )
    layout = recognise(folder)
    assert layout.name.startswith("Medical Segmentation Decathlon")
    assert layout.classes == {"liver": 1, "tumour": 2}
    assert (layout.modality, layout.channel_names, layout.sequences) == ("CT", ("image",), None)
    assert layout.test_images == "imagesTs"
    assert layout.about["description"] == "$(rm -rf /)", "text, which no config gets"
    assert layout.datalist == {"_target_": "medsaga.data.decathlon_datalist"}
    assert again(layout, folder) == layout.cases


def test_amos_has_labels_for_its_validation_list_too(tmp_path):
    write_tree(tmp_path, {"imagesVa/v.nii.gz": (), "labelsVa/v.nii.gz": L})
    folder = decathlon(tmp_path, validation=[{"image": "./imagesVa/v.nii.gz", "label": "./labelsVa/v.nii.gz"}])
    layout = recognise(folder)
    assert layout.datalist["lists"] == ["training", "validation"]
    assert [case["patient"] for case in layout.cases] == ["a_0", "a_1", "a_2", "v"]
    assert again(layout, folder) == layout.cases


def test_four_dimensions_are_channels(tmp_path):
    folder = decathlon(tmp_path, modality={"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"})
    for path in (folder / "imagesTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.repeat(np.asarray(image.dataobj)[..., None], 4, 3), image.affine), path)
    layout = recognise(folder)
    assert layout.channel_names == ("FLAIR", "T1w", "t1gd", "T2w")
    assert layout.sequences is None


def test_one_channel_is_one_whatever_the_index_says(tmp_path):
    assert recognise(decathlon(tmp_path, modality={"0": "CT", "1": "MRI"})).channel_names == ("image",)


def test_lists_of_sequences(tmp_path):
    write_tree(tmp_path, {f"imagesTr/b_{n}_{s}.nii.gz": () for n in range(3) for s in ("t1", "t2")})
    folder = decathlon(tmp_path)
    listed = [
        {"image": [f"imagesTr/b_{n}_t1.nii.gz", f"imagesTr/b_{n}_t2.nii.gz"], "label": f"labelsTr/a_{n}.nii.gz"}
        for n in range(3)
    ]
    layout = recognise(index(folder, training=listed, modality={"0": "T1", "1": "T2"}))
    assert layout.channel_names == ("T1", "T2")
    assert layout.sequences == ("_t1", "_t2")
    assert [Path(path).name for path in layout.cases[2]["image"]] == ["b_2_t1.nii.gz", "b_2_t2.nii.gz"]
    assert [case["name"] for case in layout.cases] == ["b_0", "b_1", "b_2"]
    (folder / "imagesTr" / "b_1_t2.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"b_1_t2\.nii\.gz is missing"):
        decathlon_datalist(folder)


# --- nnU-Net ---------------------------------------------------------------------------------------------------------


def nnunet(folder, cases=3, channels=1, **content):
    files = {f"imagesTr/c{n}_{k:04}.nii.gz": () for n in range(cases) for k in range(channels)}
    write_tree(folder, files | {f"labelsTr/c{n}.nii.gz": L for n in range(cases)})
    names = {str(k): ["FLAIR", "T1", "T2"][k] for k in range(channels)}
    said = {"channel_names": names, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    return index(folder, **said | content)


def test_channels_are_files_of_their_own(tmp_path):
    layout = recognise(nnunet(tmp_path, channels=3))
    assert layout.name == "nnU-Net v2"
    assert layout.classes == {"a": 1, "b": 2}
    assert layout.channel_names == ("FLAIR", "T1", "T2")
    assert layout.sequences == ("_0000", "_0001", "_0002")
    assert [case["name"] for case in layout.cases] == ["c0", "c1", "c2"]
    assert [Path(path).name for path in layout.cases[1]["image"]] == [f"c1_000{k}.nii.gz" for k in range(3)]
    assert Path(layout.cases[1]["label"]).name == "c1.nii.gz"
    assert again(layout, tmp_path) == layout.cases


def test_one_channel_is_an_image(tmp_path):
    layout = recognise(nnunet(tmp_path))
    assert Path(layout.cases[0]["image"]).name == "c0_0000.nii.gz"
    assert layout.sequences is None
    assert layout.cases[0]["patient"] == "c0"


def test_labelled_test_images_are_the_test_set(tmp_path):
    folder = nnunet(tmp_path)
    write_tree(folder, {"imagesTs/t_0000.nii.gz": (), "labelsTs/t.nii.gz": L})
    layout = recognise(folder)
    assert [case["split"] for case in layout.cases] == ["train"] * 3 + ["test"]
    assert again(layout, folder) == layout.cases
    (folder / "labelsTs" / "t.nii.gz").unlink()
    layout = recognise(folder)
    assert all("split" not in case for case in layout.cases)
    assert layout.test_images == "imagesTs"


def test_regions_become_their_parts(tmp_path):
    labels = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": [3], "ignore": 4}
    layout = recognise(nnunet(tmp_path, labels=labels))
    assert layout.classes == {"whole tumour": 1, "tumour core": 2, "enhancing": 3}
    assert any("parts are the classes" in note and "enhancing (3)" in note for note in layout.notes)
    assert any("ignore" in note for note in layout.notes)


def test_pictures_in_colours(tmp_path):
    files = {f"imagesTr/c{n}_0000.png": () for n in range(3)} | {f"labelsTr/c{n}.png": L for n in range(3)}
    said = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    layout = recognise(index(write_tree(tmp_path, files), **said))
    assert layout.channel_names == ("image",)
    assert len(layout.cases) == 3


def test_files_that_the_index_names(tmp_path):
    write_tree(tmp_path, {"x/1.nii.gz": (), "y/1.nii.gz": L, "x/2.nii.gz": (), "y/2.nii.gz": L})
    named = {f"case{n}": {"images": [f"x/{n}.nii.gz"], "label": f"y/{n}.nii.gz"} for n in (1, 2)}
    folder = index(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "a": 1}, dataset=named)
    layout = recognise(folder)
    assert [case["patient"] for case in layout.cases] == ["case1", "case2"]
    assert Path(layout.cases[1]["label"]) == tmp_path / "y" / "2.nii.gz"
    assert again(layout, folder) == layout.cases


def test_several_images_of_a_patient(tmp_path):
    names = ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
    write_tree(tmp_path, {f"imagesTr/{n}_0000.nii.gz": () for n in names} | {f"labelsTr/{n}.nii.gz": L for n in names})
    folder = index(tmp_path, channel_names={"0": "MR"}, labels={"background": 0, "a": 1}, file_ending=".nii.gz")
    layout = recognise(folder)
    assert [case["patient"] for case in layout.cases] == ["patient001", "patient001", "patient002"]
    assert again(layout, folder) == layout.cases


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "labelsTr/c1.nii.gz").unlink(), FileNotFoundError, r"1 of 3 images have no label.*c1\.nii\.gz"),
        (lambda f: (f / "imagesTr/c1_0001.nii.gz").unlink(), FileNotFoundError, "c1 of .* has 1 of 2 channels"),
        (lambda f: (f / "dataset.json").write_text("{"), ValueError, r"dataset\.json"),
        (lambda f: (f / "dataset.json").write_text("[" * 100000), ValueError, r"dataset\.json"),
        (lambda f: index(f, channel_names={"0": "a"}, file_ending=7), ValueError, "file_ending is 7"),
        (lambda f: index(f, dataset={"a": {"images": ["../x.nii"], "label": "y"}}), ValueError, "lies outside"),
        (lambda f: index(f, dataset={"a": {"images": ["/etc/passwd"], "label": "y"}}), ValueError, "lies outside"),
        (
            lambda f: index(f, dataset={"a": {"images": ["x.nii"], "label": "y"}}),
            FileNotFoundError,
            r"missing: .*x\.nii",
        ),
        (lambda f: index(f, dataset={"a": 7}), ValueError, "names no images and labels"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, damage, error, message):
    folder = nnunet(tmp_path, channels=2)
    damage(folder)
    with pytest.raises(error, match=message):
        recognise(folder)


def test_an_index_of_something_else_is_passed_over(tmp_path):
    write_tree(tmp_path, {f"{kind}/{n}.png": v for n in range(2) for kind, v in (("images", ()), ("masks", L))})
    assert len(recognise(index(tmp_path, name="mine")).cases) == 2


def test_an_index_without_images(tmp_path):
    folder = index(tmp_path, training=[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}])
    with pytest.raises(UnknownLayoutError, match=r"images that dataset\.json lists"):
        recognise(folder)


def test_no_images_of_nnunet(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    folder = index(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "a": 1}, file_ending=".nii.gz")
    with pytest.raises(FileNotFoundError, match="No image CASE_0000"):
        nnunet_datalist(folder)
