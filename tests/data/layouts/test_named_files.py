from __future__ import annotations

from pathlib import Path

import pytest

from medsaga.data import named_files_datalist, recognise
from medsaga.data.layouts import UnknownLayoutError

from .conftest import write_tree

L = (1,)  # a label of one class


def below(root, value):
    """Paths of a case below a folder."""
    if isinstance(value, dict):
        return {key: below(root, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [below(root, inner) for inner in value]
    return Path(value).relative_to(root).as_posix()


def pairs(layout, root):
    return [(below(root, case["image"]), below(root, case["label"])) for case in layout.cases]


PAIRED = {
    "same names": {"images/a.png": "masks/a.png", "images/b.png": "masks/b.png"},
    "other suffix": {"img/a.jpg": "label/a.png", "img/b.jpg": "label/b.png"},
    "Decathlon without index": {f"imagesTr/c{i}.nii.gz": f"labelsTr/c{i}.nii.gz" for i in range(3)},
    "capitals": {"Images/1.PNG": "Annotations/1.PNG", "Images/2.PNG": "Annotations/2.PNG"},
    "x and y": {"x/1.png": "y/1.png", "x/2.png": "y/2.png"},
    "suffix of names": {f"in/ISIC_{i}.jpg": f"truth/ISIC_{i}_segmentation.png" for i in range(8, 12)},
    "ISIC": {
        f"ISIC2018_Task1-2_Training_Input/ISIC_{i}.jpg": (
            f"ISIC2018_Task1_Training_GroundTruth/ISIC_{i}_segmentation.png"
        )
        for i in range(8, 12)
    },
    "other prefix": {f"img/img{i:04}.nii.gz": f"label/label{i:04}.nii.gz" for i in range(1, 13)},
    "both in one folder": {f"volume-{i}.nii": f"segmentation-{i}.nii" for i in range(3)},
    "prefix": {f"{i}.png": f"GT_{i}.png" for i in range(3)},
    "other suffix in one folder": {f"{i}.jpg": f"{i}.png" for i in range(3)},
    "word at the end": {f"ct_train_{i}_image.nii.gz": f"ct_train_{i}_label.nii.gz" for i in range(1001, 1004)},
    "groups": {
        f"Training400/{group}/{group[0]}{i:04}.jpg": (
            f"Annotation-Training400/Disc_Cup_Masks/{group}/{group[0]}{i:04}.bmp"
        )
        for group in ("Glaucoma", "Non-Glaucoma")
        for i in range(3)
    },
    "a folder a case": {f"case_{i:05}/imaging.nii.gz": f"case_{i:05}/segmentation.nii.gz" for i in range(3)},
    "a folder a case, its name in front": {f"P{i}/P{i}.nii.gz": f"P{i}/P{i}_seg.nii.gz" for i in range(3)},
    "one case": {"only/image.nii.gz": "only/mask.nii.gz"},
    "one image": {"images/a.png": "masks/a.png"},
    "the data set is called a segmentation": {
        f"skin_segmentation/pictures/mask_{i}.png": f"skin_segmentation/masks/mask_{i}.png" for i in range(3)
    },
    "names with signs of MONAI's": {f"$images/@a#{i}.png": f"$masks/@a#{i}.png" for i in range(3)},
    "signs of patterns": {f"a{{x}}*/{i}.png": f"masks [?]/{i}.png" for i in range(3)},
}


@pytest.mark.parametrize("name", PAIRED)
def test_images_find_their_labels(tmp_path, recognised, name):
    expected = PAIRED[name]
    layout = recognised({**dict.fromkeys(expected, ()), **dict.fromkeys(expected.values(), L)})
    assert dict(pairs(layout, tmp_path)) == expected
    assert len({case["patient"] for case in layout.cases}) == len(expected)
    assert layout.classes is None
    assert layout.channel_names == ("image",)
    assert layout.sequences is None


def test_labels_in_a_folder_elsewhere(tmp_path, recognised):
    files = {f"here/{i}.png": () for i in range(3)} | {f"there/result/{i}_x.png": L for i in range(3)}
    layout = recognised(files, labels="there", root="here")
    assert pairs(layout, tmp_path) == [(f"here/{i}.png", f"there/result/{i}_x.png") for i in range(3)]
    assert layout.datalist["labels_dir"] == str(tmp_path / "there")


def test_folders_of_a_split(tmp_path, recognised):
    names = {"train": "123", "val": "45", "test": "1"}
    files = {
        f"{part}/{kind}/{n}.png": v
        for part, ns in names.items()
        for n in ns
        for kind, v in (("images", ()), ("labels", L))
    }
    layout = recognised(files)
    assert [(case["split"], below(tmp_path, case["label"])) for case in layout.cases] == [
        *[("test", "test/labels/1.png")],
        *[("train", f"train/labels/{n}.png") for n in "123"],
        *[("validation", f"val/labels/{n}.png") for n in "45"],
    ]
    assert len({case["name"] for case in layout.cases}) == 6, "two images are called 1.png"


def test_a_split_in_the_names_of_folders(tmp_path, recognised):
    files = {f"images{part}/{part}{n}.nii.gz": () for part in ("Tr", "Ts") for n in range(3)}
    files |= {f"labels{part}/{part}{n}.nii.gz": L for part in ("Tr", "Ts") for n in range(3)}
    assert [case["split"] for case in recognised(files).cases] == ["train"] * 3 + ["test"] * 3


def test_images_without_labels_are_left_out_with_a_note(tmp_path, recognised):
    files = {f"images/{n}.png": () for n in range(5)} | {f"masks/{n}.png": L for n in range(3)}
    layout = recognised(files)
    assert [Path(case["image"]).name for case in layout.cases] == ["0.png", "1.png", "2.png"]
    assert any("2 of 5 images" in note for note in layout.notes)
    with pytest.raises(FileNotFoundError, match=r"2 of 5 images have no label masks/{case}.*3\.png"):
        named_files_datalist(tmp_path, "images/{case}", "masks/{case}")


def test_test_images_are_found(tmp_path, recognised):
    files = {f"imagesTr/{n}.nii.gz": () for n in range(3)} | {f"labelsTr/{n}.nii.gz": L for n in range(3)}
    layout = recognised({**files, "imagesTs/9.nii.gz": ()})
    assert layout.test_images == "imagesTs"
    assert len(layout.cases) == 3


def test_files_of_the_system_are_passed_over(tmp_path, recognised):
    files = {f"images/{n}.png": () for n in range(3)} | {f"masks/{n}.png": L for n in range(3)}
    write_tree(tmp_path, files | {"images/._0.png": (), "__MACOSX/images/0.png": ()})
    for name in ("images/Thumbs.db", "masks/.DS_Store", "readme.txt", "LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    assert len(recognised(files).cases) == 3


# --- several files a label -------------------------------------------------------------------------------------------


def test_a_mask_and_more_of_the_same_image(tmp_path, recognised):
    """As BUSI comes: benign (1)_mask.png, and benign (1)_mask_1.png where there is a second lesion."""
    files = {}
    for group in ("benign", "malignant", "normal"):
        for n in (1, 2, 10):
            files |= {f"{group}/{group} ({n}).png": (), f"{group}/{group} ({n})_mask.png": L}
    files["benign/benign (10)_mask_1.png"] = files["malignant/malignant (1)_mask_1.png"] = L
    layout = recognised(files)
    labels = {below(tmp_path, case["image"]): below(tmp_path, case["label"]) for case in layout.cases}
    assert len(labels) == 9
    assert labels["benign/benign (10).png"] == {
        "object": ["benign/benign (10)_mask.png", "benign/benign (10)_mask_1.png"]
    }
    assert labels["benign/benign (1).png"] == {"object": ["benign/benign (1)_mask.png"]}
    assert len({case["patient"] for case in layout.cases}) == 9, "benign is no patient"
    assert layout.classes == {"object": 1}


def test_a_file_an_instance_in_the_folder_of_the_case(tmp_path, recognised):
    files = {}
    for case in range(4):
        files[f"id{case}/images/id{case}.png"] = ()
        files |= {f"id{case}/masks/{1000 * case + 7 * n:x}f.png": L for n in range(2 + case)}
    layout = recognised(files)
    assert [len(case["label"]["object"]) for case in layout.cases] == [2, 3, 4, 5]
    for case in layout.cases:
        assert all(f"/{case['patient']}/masks/" in path for path in case["label"]["object"])


CLASSES = {
    "a folder a class": lambda n, name: f"masks/{name}/{n}.png",
    "name and class": lambda n, name: f"masks/{n}_{name}.png",
    "class and name": lambda n, name: f"labels/{name}-{n}.png",
}


@pytest.mark.parametrize("place", CLASSES.values(), ids=CLASSES)
def test_a_file_a_class(tmp_path, recognised, place):
    names = ["heart", "left lung", "right lung"]
    files = {f"images/{n}.png": () for n in range(4)}
    files |= {place(n, name): L for n in range(4) for name in names if (n, name) != (2, "heart")}
    layout = recognised(files)
    assert layout.classes == {"heart": 1, "left lung": 2, "right lung": 3}
    for n, case in enumerate(layout.cases):
        expected = {name: place(n, name) for name in names if (n, name) != (2, "heart")}
        assert below(tmp_path, case["label"]) == expected


@pytest.mark.parametrize("folder", ["segmentations/", ""])
def test_a_file_a_class_in_the_folder_of_the_case(tmp_path, recognised, folder):
    organs = ["kidney_left", "liver", "spleen", "vertebrae_L1"]
    files = {}
    for n in range(3):
        files[f"s{n:04}/ct.nii.gz"] = ()
        files |= {f"s{n:04}/{folder}{organ}.nii.gz": L for organ in organs}
    layout = recognised(files)
    assert list(layout.classes) == ["kidney left", "liver", "spleen", "vertebrae L1"]
    assert below(tmp_path, layout.cases[1]["label"])["spleen"] == f"s0001/{folder}spleen.nii.gz"
    assert [case["name"] for case in layout.cases] == ["s0000", "s0001", "s0002"]


def test_a_jpeg_a_class_is_one_class(tmp_path, recognised):
    """What JPEG changes at edges are no further classes, as reading takes its masks."""
    files = {f"images/{i}.png": () for i in range(3)}
    files |= {f"masks/{side}/{i}.jpg": (255,) for side in ("left", "right") for i in range(3)}
    layout = recognised(files)
    assert layout.classes == {"left": 1, "right": 2}
    assert {tuple(case["label"]) for case in layout.cases} == {("left", "right")}


def test_two_labels_of_a_case_are_refused(tmp_path, recognised):
    files = {}
    for n in range(3):
        files |= {f"c{n}/image.nii.gz": (), f"c{n}/seg.nii.gz": (1, 2), f"c{n}/seg_second.nii.gz": (1, 2)}
    with pytest.raises(ValueError, match=r"2 labels.*seg.*Which is meant"):
        recognised(files)


# --- sequences -------------------------------------------------------------------------------------------------------


def test_sequences_in_the_folder_of_the_case(tmp_path, recognised):
    names = ["flair", "t1", "t1ce", "t2"]
    files = {}
    for group in ("HGG", "LGG"):
        for n in range(3):
            case = f"BraTS19_{group}_{n}"
            files |= {f"{group}/{case}/{case}_{name}.nii.gz": () for name in names}
            files[f"{group}/{case}/{case}_seg.nii.gz"] = (1, 2, 4)
    layout = recognised(files)
    assert layout.channel_names == tuple(names)
    assert layout.sequences == ("_flair", "_t1", "_t1ce", "_t2")
    assert len(layout.cases) == 6
    first = layout.cases[0]
    assert below(tmp_path, first["image"]) == [f"HGG/BraTS19_HGG_0/BraTS19_HGG_0_{name}.nii.gz" for name in names]
    assert below(tmp_path, first["label"]) == "HGG/BraTS19_HGG_0/BraTS19_HGG_0_seg.nii.gz"


def test_a_label_that_no_name_tells_is_told_by_its_values(tmp_path, recognised):
    files = {}
    for n in range(3):
        files |= {f"pat{n}_1/Flair_std.nii.gz": (), f"pat{n}_1/T1c_std.nii.gz": (), f"pat{n}_1/OTMulti.nii.gz": (1, 3)}
    layout = recognised(files)
    assert layout.channel_names == ("Flair", "T1c")
    assert layout.sequences == ("Flair_std", "T1c_std")
    assert below(tmp_path, layout.cases[1]["label"]) == "pat1_1/OTMulti.nii.gz"
    assert [case["patient"] for case in layout.cases] == ["pat0_1", "pat1_1", "pat2_1"]
    assert any("by their values" in note for note in layout.notes)


def test_sequences_of_a_folder_without_index(tmp_path, recognised):
    files = {f"images/c{n}_{i:04}.nii.gz": () for n in range(3) for i in range(2)}
    layout = recognised(files | {f"labels/c{n}.nii.gz": L for n in range(3)})
    assert layout.sequences == ("_0000", "_0001")
    assert pairs(layout, tmp_path)[2] == (["images/c2_0000.nii.gz", "images/c2_0001.nii.gz"], "labels/c2.nii.gz")
    assert [case["name"] for case in layout.cases] == ["c0", "c1", "c2"]


def test_what_not_every_case_has_is_no_sequence(tmp_path, recognised):
    files = {}
    for n in range(3):
        files |= {f"c{n}/c{n}_ct.nii.gz": (), f"c{n}/c{n}_mask.nii.gz": L}
    layout = recognised({**files, "c1/c1_pet.nii.gz": ()})
    assert pairs(layout, tmp_path)[1] == ("c1/c1_ct.nii.gz", "c1/c1_mask.nii.gz")
    assert any("pet" in note for note in layout.notes)


# --- patients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (
            ["patient001_frame01", "patient001_frame12", "patient002_frame01"],
            ["patient001", "patient001", "patient002"],
        ),
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], ["sub-01", "sub-01", "sub-02"]),
        (["case0001_slice000", "case0001_slice001", "case0002_slice000"], ["case0001", "case0001", "case0002"]),
        (["7_left", "7_right", "8_left"], ["7", "7", "8"]),
        (["hippocampus_001", "hippocampus_002", "hippocampus_003"], None),
        (["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"], None),
    ],
)
def test_patients_are_taken_from_names_only_where_that_is_certain(tmp_path, recognised, names, patients):
    layout = recognised({f"images/{n}.png": () for n in names} | {f"masks/{n}.png": L for n in names})
    assert [case["patient"] for case in layout.cases] == (patients or names)
    assert any("patients" in note for note in layout.notes) == bool(patients)
    assert ("patient" in layout.datalist) == bool(patients)


def test_a_folder_a_patient(tmp_path, recognised):
    files = {}
    for patient in ("TCGA_CS_4941", "TCGA_DU_5855"):
        for n in (1, 2, 11):
            files |= {f"{patient}/{patient}_{n}.tif": (), f"{patient}/{patient}_{n}_mask.tif": L}
    layout = recognised(files)
    assert len(layout.cases) == 6
    assert {case["patient"] for case in layout.cases} == {"TCGA_CS_4941", "TCGA_DU_5855"}
    assert all(case["label"] == case["image"].replace(".tif", "_mask.tif") for case in layout.cases)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "masks/{name}"}, r"masks/{name} has {name}, which images/{case} does not have"),
        ({"label": "masks/*"}, "classes must name a class for each pattern"),
        ({"label": ["masks/{case}", "other/{case}"]}, "classes must name a class for each pattern"),
        ({"label": ["masks/{case}"], "classes": ["a", "b"]}, "1 different names, one for each pattern"),
        ({"unlabelled": "keep"}, "'refuse' or 'leave out'"),
        ({"patient": "("}, "regular expression with one group"),
        ({"patient": r"x(\d)"}, "finds no patient"),
        ({"image": "{other}/{case}", "label": "masks/{case}"}, None),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    write_tree(tmp_path, {"images/a.png": (), "masks/a.png": L})
    call = {"image": "images/{case}", "label": "masks/{case}", **arguments}
    if message is None:
        assert len(named_files_datalist(tmp_path, **call)) == 1
        return
    with pytest.raises(ValueError, match=message):
        named_files_datalist(tmp_path, **call)


def test_a_folder_without_pairs_says_what_each_layout_lacks(tmp_path):
    write_tree(tmp_path, {"a.png": (), "b.png": ()})
    with pytest.raises(ValueError, match=r"(?s)--labels.*dataset\.json") as caught:
        recognise(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert [len(line.partition("lacks")[2]) for line in lines] == sorted(
        len(line.partition("lacks")[2]) for line in lines
    )


def test_no_folder_no_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*--data"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere.*--labels"):
        recognise(tmp_path, tmp_path / "nowhere")


def test_real_data(sample_data):
    layout = recognise(sample_data / "BUSI")
    assert len(layout.cases) == len(list((sample_data / "BUSI" / "images").iterdir()))
    nuclei = recognise(sample_data / "DSB2018")
    assert len(nuclei.cases) == len(list((sample_data / "DSB2018").iterdir()))
    for case in nuclei.cases:
        masks = list((Path(case["image"]).parents[1] / "masks").iterdir())
        assert sorted(map(str, masks)) == case["label"]["object"]
    tumours = recognise(sample_data / "BraTS2015")
    assert tumours.sequences == ("Flair_subtrMeanDivStd", "T1c_subtrMeanDivStd")
    assert {Path(case["label"]).name for case in tumours.cases} == {"OTMultiClass.nii.gz"}


@pytest.mark.parametrize(
    "files",
    [
        {f"phantom_{n:03}.nii.gz": () if n else (1, 2) for n in range(4)},
        {f"phantom_{n:03}.nii.gz": (1, 2) for n in range(4)},
        {f"images/{n}.png": () for n in range(3)},
        {f"images/{n}.png": () for n in range(3)} | {f"masks/x{n}y.png": (1,) for n in "abc"},
    ],
    ids=["one that looks like a label", "labels alone", "images alone", "nothing in common"],
)
def test_what_does_not_belong_together_is_not_paired(tmp_path, files):
    with pytest.raises(UnknownLayoutError):
        recognise(write_tree(tmp_path, files))
