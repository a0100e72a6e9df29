from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsaga.data import recognise, table_datalist
from medsaga.data.layouts import UnknownLayoutError

from .conftest import again, write_tree

L = (1,)


def images(folder, number=3, **more):
    files = {f"scans/{n}.png": () for n in range(number)} | {f"drawn/z{n}.png": L for n in range(number)}
    return write_tree(folder, files | more)


def names(cases, key):
    return [Path(case[key]).name for case in cases]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", [["image", "label"], ["Image", "Mask"], ["img_path", "mask_path"], ["IMAGE FILE", "Ground Truth"]]
)
def test_columns_have_usual_names(tmp_path, header, delimiter):
    folder = images(tmp_path)
    rows = [header, *([f"scans/{n}.png", f"drawn/z{n}.png"] for n in range(3))]
    name = "cases.tsv" if delimiter == "\t" else "cases.csv"
    (folder / name).write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    layout = recognise(folder)
    assert layout.name == f"table {name}"
    assert (names(layout.cases, "image"), names(layout.cases, "label")) == (
        ["0.png", "1.png", "2.png"],
        ["z0.png", "z1.png", "z2.png"],
    )
    assert again(layout, folder) == layout.cases
    # the table itself as the data, also as dataset_dir of the config
    assert recognise(folder / name).cases == layout.cases == again(layout, folder / name)


def test_patient_split_and_modality(tmp_path):
    folder = images(tmp_path)
    (folder / "list.csv").write_text(
        "id,modality,subject_id,Split,image,label\n"
        "0,CT,ann,train,scans/0.png,drawn/z0.png\n1,CT,ann,Train,scans/1.png,drawn/z1.png\n"
        "2,CT,bob,test,scans/2.png,drawn/z2.png\n"
    )
    layout = recognise(folder)
    assert [case["patient"] for case in layout.cases] == ["ann", "ann", "bob"]
    assert [case["split"] for case in layout.cases] == ["train", "train", "test"]
    assert layout.modality == "CT"
    assert again(layout, folder) == layout.cases


def test_several_sequences_and_a_column_a_class(tmp_path):
    folder = write_tree(
        tmp_path,
        {f"p{n}_{s}.nii.gz": () for n in range(2) for s in ("t1", "t2")}
        | {f"p{n}_{c}.nii.gz": L for n in range(2) for c in ("liver", "left_kidney")},
    )
    rows = ["image_t1,image_t2,label_liver,label_left_kidney"]
    rows += [
        "p0_t1.nii.gz,p0_t2.nii.gz,p0_liver.nii.gz,p0_left_kidney.nii.gz",
        "p1_t1.nii.gz,p1_t2.nii.gz,p1_liver.nii.gz,",
    ]
    (folder / "cases.csv").write_text("\n".join(rows))
    layout = recognise(folder)
    assert (layout.channel_names, layout.sequences) == (("t1", "t2"), ("_t1", "_t2"))
    assert layout.classes == {"liver": 1, "left kidney": 2}
    assert list(layout.cases[1]["label"]) == ["liver"]
    assert [Path(path).name for path in layout.cases[0]["image"]] == ["p0_t1.nii.gz", "p0_t2.nii.gz"]
    assert again(layout, folder) == layout.cases
    renamed = table_datalist(folder, "cases.csv", classes=["Leber", "Niere"])
    assert list(renamed[0]["label"]) == ["Leber", "Niere"]


@pytest.mark.parametrize("lists", [False, True])
def test_json(tmp_path, lists):
    folder = images(tmp_path)
    rows = [{"image": f"scans/{n}.png", "label": f"./drawn/z{n}.png", "fold": 0} for n in range(3)]
    content = {"training": rows[:2], "validation": rows[2:], "testing": [{"image": "scans/9.png"}]} if lists else rows
    (folder / "mine.json").write_text(json.dumps(content))
    layout = recognise(folder)
    assert names(layout.cases, "label") == ["z0.png", "z1.png", "z2.png"]
    assert [case.get("split") for case in layout.cases] == (["train", "train", "validation"] if lists else [None] * 3)
    assert again(layout, folder) == layout.cases


def test_rows_without_label_are_left_out(tmp_path):
    folder = images(tmp_path)
    (folder / "cases.csv").write_text("image,label\nscans/0.png,drawn/z0.png\nscans/1.png,\n")
    layout = recognise(folder)
    assert len(layout.cases) == 1
    assert any("1 of 2 rows" in note for note in layout.notes)


def test_absolute_paths_inside_the_folder(tmp_path):
    folder = images(tmp_path)
    (folder / "cases.csv").write_text(f"image,label\n{folder}/scans/0.png,{folder}/drawn/z0.png\n")
    assert names(recognise(folder).cases, "image") == ["0.png"]


def test_a_table_of_something_else_is_passed_over(tmp_path):
    folder = write_tree(tmp_path, {f"{k}/{n}.png": v for n in range(3) for k, v in (("images", ()), ("masks", L))})
    (folder / "metadata.csv").write_text("image,label\n0,benign\n1,malignant\n")
    (folder / "notes.json").write_text("{")
    assert recognise(folder).name.startswith("two folders")


def test_two_tables(tmp_path):
    folder = images(tmp_path)
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("image,label\nscans/0.png,drawn/z0.png\n")
    with pytest.raises(ValueError, match=r"2 tables.*a\.csv, b\.csv.*--data"):
        recognise(folder)
    assert len(recognise(folder / "b.csv").cases) == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("image,label\n../x.png,drawn/z0.png\n", ValueError, r"cases\.csv: '\.\./x\.png' lies outside"),
        ("image,label\n/etc/passwd,drawn/z0.png\n", ValueError, "'/etc/passwd' lies outside"),
        ("image,label\nC:\\x.png,drawn/z0.png\n", ValueError, "lies outside"),
        (
            "image,label\nscans/0.png,drawn/none.png\n",
            FileNotFoundError,
            r"1 files that .*cases\.csv names are missing",
        ),
        ("image,label\nscans/0.png,drawn/z0.png\nscans/0.png,drawn/z1.png\n", ValueError, "in several rows"),
        ("image,label,split\nscans/0.png,drawn/z0.png,7\n", ValueError, "split is '7'"),
        ("picture,what\nscans/0.png,drawn/z0.png\n", ValueError, "columns picture, what; it needs image and label"),
        ("", ValueError, "it needs image and label"),
        ("image,label\n", ValueError, "it needs image and label"),
        ("image,label\n$(touch x),`id`\n", FileNotFoundError, "missing"),
    ],
)
def test_errors_name_the_table(tmp_path, text, error, message):
    folder = images(tmp_path)
    (folder / "cases.csv").write_text(text)
    with pytest.raises(error, match=message):
        recognise(folder / "cases.csv")


def test_other_files_are_no_table(tmp_path):
    (tmp_path / "x.txt").write_text("image,label\n")
    with pytest.raises(UnknownLayoutError, match=r"a table \(\.csv, \.tsv, \.json\)"):
        recognise(tmp_path / "x.txt")
