from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medsaga.data import (
    bids_datalist,
    decathlon_datalist,
    images_datalist,
    paired_folders_datalist,
    write_decathlon_phantoms,
)
from medsaga.reading import ReadingError, open_image


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def decathlon(tmp_path) -> Path:
    return write_decathlon_phantoms(tmp_path / "Task99", cases=3, shape=(8, 9, 8))


def test_decathlon_cases_name_existing_files_and_the_patient(decathlon):
    datalist = decathlon_datalist(decathlon)
    assert [case["patient"] for case in datalist] == ["phantom_000", "phantom_001", "phantom_002"]
    for case in datalist:
        assert Path(case["image"]) == decathlon / "imagesTr" / f"{case['patient']}.nii.gz"
        assert Path(case["label"]) == decathlon / "labelsTr" / f"{case['patient']}.nii.gz"
        assert Path(case["image"]).is_file()
        assert Path(case["label"]).is_file()


def test_decathlon_leaves_out_cases_that_were_not_copied(decathlon, caplog):
    for folder in ("imagesTr", "labelsTr"):
        (decathlon / folder / "phantom_001.nii.gz").unlink()
    assert [case["patient"] for case in decathlon_datalist(decathlon)] == ["phantom_000", "phantom_002"]
    assert "1 of the 3 cases" in caplog.text
    assert "phantom_001" in caplog.text


def test_decathlon_takes_what_dataset_json_names_and_nothing_else(decathlon, caplog):
    touch(decathlon / "imagesTr" / "other.nii.gz", decathlon / "labelsTr" / "other.nii.gz")
    assert len(decathlon_datalist(decathlon)) == 3
    assert not caplog.text


def test_decathlon_takes_several_lists_one_after_the_other(decathlon):
    content = json.loads((decathlon / "dataset.json").read_text())
    for folder in ("imagesVa", "labelsVa"):
        touch(decathlon / folder / "second.nii.gz")
    content["validation"] = [{"image": "./imagesVa/second.nii.gz", "label": "./labelsVa/second.nii.gz"}]
    (decathlon / "dataset.json").write_text(json.dumps(content))
    first = decathlon_datalist(decathlon)
    assert len(first) == 3
    both = decathlon_datalist(decathlon, ["training", "validation"])
    assert both[:3] == first
    second = [str(decathlon / folder / "second.nii.gz") for folder in ("imagesVa", "labelsVa")]
    assert both[3:] == [{"image": second[0], "label": second[1], "patient": "second"}]
    assert decathlon_datalist(decathlon, ["training", "more"]) == first
    with pytest.raises(ValueError, match="list 'more' or 'most'"):
        decathlon_datalist(decathlon, ["more", "most"])


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def index(content):
    return lambda folder: (folder / "dataset.json").write_text(content)


ALL = [f"{folder}/phantom_00{i}.nii.gz" for folder in ("imagesTr", "labelsTr") for i in range(3)]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("dataset.json"), FileNotFoundError, "dataset.json is missing"),
        (remove("labelsTr/phantom_001.nii.gz"), FileNotFoundError, r"labelsTr/phantom_001.nii.gz is missing"),
        (remove("imagesTr/phantom_002.nii.gz"), FileNotFoundError, r"imagesTr/phantom_002.nii.gz is missing"),
        (remove(*ALL), FileNotFoundError, "None of the 3 cases"),
        (index("{"), ValueError, "dataset.json is not a Decathlon"),
        (index("7"), ValueError, "dataset.json is not a Decathlon"),
        (index('{"test": []}'), ValueError, "dataset.json is not a Decathlon"),
        (index('"training"'), ValueError, "dataset.json is not a Decathlon"),
        (index('{"training": ["a.nii.gz"]}'), ValueError, "dataset.json is not a Decathlon"),
        (index('{"training": [{"image": "imagesTr/a.nii.gz"}]}'), ValueError, "dataset.json is not a Decathlon"),
        (index('{"training": []}'), FileNotFoundError, "None of the 0 cases"),
    ],
)
def test_decathlon_errors_say_what_is_wrong(decathlon, damage, error, message):
    damage(decathlon)
    with pytest.raises(error, match=message):
        decathlon_datalist(decathlon)


ISLES = [
    "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz",
    "sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_dwi.nii.gz",
    "sub-strokecase0002/ses-0002/dwi/sub-strokecase0002_ses-0002_dwi.nii.gz",
]


def isles(root, *, raw="", flat=False, method=""):
    """Empty files in the layout of ISLES 2022; the pairs that the datalist has to find."""
    pairs = []
    for name in ISLES:
        image = root / raw / (name.replace("/dwi/", "/") if flat else name)
        label = root / "derivatives" / method / name.replace("/dwi/", "/").replace("_dwi", "_msk")
        # what a subject's folder has besides
        touch(
            image, label, image.parent / image.name.replace("_dwi", "_adc"), image.with_suffix("").with_suffix(".json")
        )
        touch(image.parent / f"._{image.name}", label.with_name(label.name.replace("msk.nii.gz", "snp.png")))
        pairs.append((str(image), str(label)))
    touch(root / "participants.tsv")
    return pairs


@pytest.mark.parametrize(
    "layout", [{}, {"raw": "rawdata"}, {"raw": "rawdata", "flat": True}, {"method": "manual_masks"}]
)
def test_bids_pairs_images_and_masks_by_name(tmp_path, layout):
    pairs = isles(tmp_path, **layout)
    datalist = bids_datalist(tmp_path, "dwi", "msk")
    assert [(case["image"], case["label"]) for case in datalist] == pairs
    # both sessions of a subject fall in the same part of a split
    assert [case["patient"] for case in datalist] == ["sub-strokecase0001", "sub-strokecase0002", "sub-strokecase0002"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda image, label: label.unlink(), r"1 of 3 images have no label; .*0002_ses-0002_msk\.nii\.gz"),
        (lambda image, label: image.unlink(), r"1 of 3 labels have no image; .*0002_ses-0002_dwi\.nii\.gz"),
        (lambda image, label: shutil.rmtree(image.parents[3] / "derivatives"), "folder 'derivatives'"),
        (lambda image, label: [p.unlink() for p in image.parents[3].rglob("*_dwi.nii.gz")], r"No image sub-\*_dwi"),
    ],
)
def test_bids_errors_name_what_is_missing(tmp_path, damage, message):
    image, label = isles(tmp_path)[-1]
    damage(Path(image), Path(label))
    with pytest.raises(FileNotFoundError, match=message):
        bids_datalist(tmp_path, "dwi", "msk")


def test_bids_refuses_two_images_of_one_name(tmp_path):
    image = Path(isles(tmp_path)[0][0])
    touch(image.parents[1] / image.name)
    with pytest.raises(ValueError, match="same name"):
        bids_datalist(tmp_path, "dwi", "msk")


def bids(folder):
    return bids_datalist(folder, "dwi", "msk")


@pytest.mark.parametrize("datalist", [decathlon_datalist, bids, paired_folders_datalist, images_datalist])
def test_missing_folder_is_named_with_the_option_to_set(tmp_path, datalist):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--dataset_dir"):
        datalist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.png", "a.png"),
        ("a.jpg", "a.png"),
        ("a.nii.gz", "a.nrrd"),
        ("a.nrrd", "a.seg.nrrd"),
        ("a/1.dcm", "a.nii.gz"),
        # series UIDs, as MONAI Label names the files of a DICOMweb store
        ("1.2.840.10008.nii.gz", "1.2.840.10008.nii.gz"),
        ("1.2.840.10008/0001", "1.2.840.10008.nii.gz"),
    ],
)
def test_paired_folders_match_by_name_up_to_the_suffix(tmp_path, image, label):
    touch(tmp_path / "images" / image, tmp_path / "masks" / label)
    entry = tmp_path / "images" / Path(image).parts[0]
    patient = "1.2.840.10008" if image.startswith("1") else "a"
    assert paired_folders_datalist(tmp_path) == [
        {"image": str(entry), "label": str(tmp_path / "masks" / label), "patient": patient}
    ]


def test_paired_folders_tell_names_with_dots_apart(tmp_path):
    names = ["1.2.3.png", "1.2.4.png"]
    touch(*(tmp_path / folder / name for folder in ("images", "masks") for name in names))
    datalist = paired_folders_datalist(tmp_path)
    assert [case["patient"] for case in datalist] == ["1.2.3", "1.2.4"]
    assert [Path(case["label"]).name for case in datalist] == names


def test_paired_folders_take_folder_names_and_the_patient_pattern(tmp_path):
    for name in ("p1_left.png", "p1_right.png", "p2_left.png"):
        touch(tmp_path / "xrays" / name, tmp_path / "lungs" / name)
    touch(tmp_path / "xrays" / ".DS_Store", tmp_path / "lungs" / "p9_left.png")  # neither a case nor an error
    datalist = paired_folders_datalist(tmp_path, images="xrays", labels="lungs", patient=r"([^_]+)_")
    assert [case["patient"] for case in datalist] == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    ("files", "options", "error", "message"),
    [
        (["images/a.png", "images/b.png", "masks/a.png"], {}, FileNotFoundError, r"1 of 2 images.*b\.png"),
        (["images/a.png"], {}, FileNotFoundError, "masks"),
        (["images/.hidden", "masks/a.png"], {}, FileNotFoundError, "No image in"),
        (["images/a.png", "images/a.jpg", "masks/a.png"], {}, ValueError, "same name"),
        (["images/a.png", "masks/a.png", "masks/a.nii.gz"], {}, ValueError, "same name"),
        (["images/a.png", "masks/a.png"], {"patient": r"(\d+)_"}, ValueError, r"no patient in the name of .*a\.png"),
    ],
)
def test_paired_folders_errors_say_what_is_wrong(tmp_path, files, options, error, message):
    touch(*(tmp_path / file for file in files))
    with pytest.raises(error, match=message):
        paired_folders_datalist(tmp_path, **options)


def dicom(*paths):
    """Empty CT slices: headers are enough to be listed."""
    uid = generate_uid()
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SeriesInstanceUID, image.StudyInstanceUID, image.Modality = uid, generate_uid(), "CT"
        image.Rows = image.Columns = 2
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SamplesPerPixel = [1, 1], 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelData = 15, bytes(8)
        image.save_as(path, write_like_original=False)
    return str(uid)


def listed(folder):
    return [(str(Path(case["image"]).relative_to(folder)), case["name"]) for case in images_datalist(folder)]


def test_images_datalist_takes_a_file_or_every_image_of_a_folder(tmp_path, caplog):
    touch(tmp_path / "b.nii.gz", tmp_path / "a.png", tmp_path / ".DS_Store", tmp_path / "deep" / "er" / "1.nrrd")
    touch(tmp_path / "readme.txt", tmp_path / "b.json")
    assert images_datalist(tmp_path / "a.png") == [{"image": str(tmp_path / "a.png"), "name": "a"}]
    assert listed(tmp_path) == [("a.png", "a"), ("b.nii.gz", "b"), ("deep/er/1.nrrd", "deep_er_1")]
    assert "1 files in" in caplog.text
    assert "readme.txt" in caplog.text


def test_images_datalist_takes_the_series_of_dicom_folders(tmp_path):
    dicom(*(tmp_path / "study" / "series" / f"IM{i}" for i in range(3)))
    touch(tmp_path / "study" / "series" / "DICOMDIR", tmp_path / "study" / "notes.txt")
    assert listed(tmp_path) == [("study/series", "study_series")]
    assert images_datalist(tmp_path / "study" / "series") == [
        {"image": str(tmp_path / "study" / "series"), "name": "series"}
    ]
    # several in one folder are a case each, named by their UIDs
    first = dicom(*(tmp_path / "both" / f"1{i}.dcm" for i in range(3)))
    second = dicom(*(tmp_path / "both" / f"2{i}.dcm" for i in range(4)))
    cases = images_datalist(tmp_path / "both")
    assert {case["name"] for case in cases} == {first, second}
    for case in cases:
        assert case["image"] == str(tmp_path / "both" / case["name"])
        assert images_datalist(case["image"]) == [case]


def test_a_damaged_dicom_file_is_a_case_that_will_be_named(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"junk")
    assert listed(tmp_path) == [("a.dcm", "a")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("scan.nii.gz", "scan.nrrd"),
        ("Scan.nii.gz", "scan.nii"),
        ("a/b.png", "a_b.png"),
    ],
)
def test_images_datalist_refuses_two_cases_of_one_output(tmp_path, one, other):
    touch(tmp_path / one, tmp_path / other)
    with pytest.raises(ValueError, match=r"same name.*overwrite"):
        images_datalist(tmp_path)


def test_uids_and_dots_stay_whole(tmp_path):
    names = ["1.2.840.113619.2.55.10", "1.2.840.113619.2.55.11", "A.Huber", "A.Maier"]
    touch(*(tmp_path / f"{name}.nii.gz" for name in names))
    assert [name for _, name in listed(tmp_path)] == names


def test_a_link_back_to_the_folder_does_not_hang(tmp_path):
    touch(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert listed(tmp_path) == [("a.png", "a")]


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: touch(folder / "notes.txt")])
def test_images_datalist_refuses_a_folder_without_images(tmp_path, make):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No image in .*\.nii\.gz"):
        images_datalist(tmp_path)


def test_decathlon_patients_keep_dots_and_backslashes_separate(tmp_path):
    names = ["A.Huber", "A.Maier"]
    touch(*(tmp_path / folder / f"{name}.nii.gz" for folder in ("imagesTr", "labelsTr") for name in names))
    cases = [{"image": f".\\imagesTr\\{name}.nii.gz", "label": f"labelsTr\\{name}.nii.gz"} for name in names]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases}))
    datalist = decathlon_datalist(tmp_path)
    assert [case["patient"] for case in datalist] == names
    assert all(Path(case[key]).is_file() for case in datalist for key in ("image", "label"))


@pytest.mark.parametrize("path", ["../other/a.nii.gz", "/etc/passwd", "imagesTr/../../a.nii.gz"])
def test_decathlon_takes_no_file_outside_its_folder(tmp_path, path):
    touch(tmp_path / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": path, "label": "a.nii.gz"}]}))
    with pytest.raises(ValueError, match="lies outside"):
        decathlon_datalist(tmp_path)


def test_paired_folders_pass_over_files_that_are_no_images(tmp_path, caplog):
    touch(tmp_path / "images" / "a.png", tmp_path / "images" / "Thumbs.db", tmp_path / "masks" / "a.png")
    assert len(paired_folders_datalist(tmp_path)) == 1
    assert "Thumbs.db" in caplog.text


def test_real_data_sets_are_listed_whole(sample_data):
    hippocampus = decathlon_datalist(sample_data / "Task04_Hippocampus")
    present = {path.name for path in (sample_data / "Task04_Hippocampus" / "imagesTr").glob("h*.nii.gz")}
    assert {Path(case["image"]).name for case in hippocampus} == present
    listed = json.loads((sample_data / "Task04_Hippocampus" / "dataset.json").read_text())["training"]
    assert 0 < len(hippocampus) <= len(listed)
    for name in ("JSRT", "BUSI"):
        assert len(paired_folders_datalist(sample_data / name)) == len(list((sample_data / name / "images").iterdir()))
    stroke = bids_datalist(sample_data / "ISLES2022", "dwi", "msk")
    assert {case["patient"] for case in stroke} == {p.name for p in (sample_data / "ISLES2022").glob("sub-*")}


def test_damaged_xrays_leave_the_others_alone(tmp_path):
    """A file that may be a slice of a volume is that volume's problem, but not that of single images beside it."""
    for name in ("a", "b"):
        dicom(tmp_path / f"{name}.dcm")
    (tmp_path / "junk.dcm").write_bytes(b"junk")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:300])
    assert sorted(name for _, name in listed(tmp_path)) == ["a", "b", "cut", "junk"]
    for case in images_datalist(tmp_path):
        if case["name"] in ("a", "b"):
            assert open_image(case["image"]).grid.shape[:2] == (2, 2)
        else:
            with pytest.raises(ReadingError, match=rf"{case['name']}\.dcm"):
                open_image(case["image"])
