from __future__ import annotations

from pathlib import Path

import pytest

from medsaga.data import recognise

from .conftest import again, write_tree

L = (1,)


def bids(folder, raw, derived, subjects=("01", "02", "03"), sessions=("",)):
    """Files of each subject and session; ``{s}`` is what their names begin with."""
    files = {}
    for subject in subjects:
        for session in sessions:
            below = f"sub-{subject}/" + (f"{session}/" if session else "")
            name = f"sub-{subject}" + (f"_{session}" if session else "")
            files |= {below + text.format(s=name): () for text in raw}
            for text in derived:
                pipeline, _, file = text.rpartition(":")
                files[f"derivatives/{pipeline + '/' if pipeline else ''}{below}{file.format(s=name)}"] = L
    return write_tree(folder, {f"{name}.nii.gz": values for name, values in files.items()})


@pytest.mark.parametrize(
    ("raw", "derived", "image", "label"),
    [
        (["anat/{s}_T1w"], ["manual:anat/{s}_space-T1w_desc-manual_dseg"], "T1w", "space-T1w_desc-manual_dseg"),
        (["dwi/{s}_dwi"], ["{s}_msk"], "dwi", "msk"),
        (["anat/{s}_T1w", "anat/{s}_FLAIR"], ["anat/{s}_space-FLAIR_dseg"], ["FLAIR", "T1w"], "space-FLAIR_dseg"),
        (["anat/{s}_acq-sag_T2w", "anat/{s}_acq-ax_T2w"], ["anat/{s}_acq-sag_dseg"], "T2w", "dseg"),
        (["anat/{s}_T2w"], ["labels:anat/{s}_T2w_lesion-manual"], "T2w", "T2w_lesion-manual"),
        (["anat/{s}_run-1_T1w"], ["a/b:anat/{s}_run-1_label-lesion_mask"], "T1w", "label-lesion_mask"),
        (["dwi/{s}_dwi", "dwi/{s}_adc", "anat/{s}_FLAIR"], ["dwi/{s}_msk"], None, "msk"),
    ],
)
def test_labels_are_found_whatever_their_entities(tmp_path, raw, derived, image, label):
    folder = bids(tmp_path, raw, derived)
    layout = recognise(folder)
    assert layout.name.startswith("Brain Imaging Data Structure")
    if image is not None:
        assert layout.datalist["image"] == image
    assert layout.datalist["label"] == label
    assert [case["patient"] for case in layout.cases] == ["sub-01", "sub-02", "sub-03"]
    for case in layout.cases:
        assert Path(case["label"]).name.startswith(case["patient"])
    assert again(layout, folder) == layout.cases


def test_sequences_lie_side_by_side(tmp_path):
    """As ISLES: DWI and ADC in one folder; the FLAIR elsewhere is on another grid."""
    folder = bids(tmp_path, ["dwi/{s}_dwi", "dwi/{s}_adc", "anat/{s}_FLAIR"], ["dwi/{s}_dwi_desc-x_msk"])
    (folder / "sub-02" / "dwi" / "sub-02_adc.nii.gz").unlink()
    assert recognise(folder).datalist["image"] == "dwi", "not every subject has an ADC map"


def test_sessions_and_raw_data(tmp_path):
    bids(tmp_path / "rawdata", ["anat/{s}_T1w"], [], sessions=("ses-1", "ses-2"))
    bids(tmp_path, [], ["manual:anat/{s}_dseg"], sessions=("ses-1", "ses-2"))
    for path in sorted(tmp_path.glob("sub-*")):
        path.rmdir() if not any(path.iterdir()) else None
    layout = recognise(tmp_path)
    assert len(layout.cases) == 6
    assert len({case["patient"] for case in layout.cases}) == 3
    assert again(layout, tmp_path) == layout.cases


def test_a_file_a_class(tmp_path):
    folder = bids(tmp_path, ["anat/{s}_T1w"], [f"manual:anat/{{s}}_label-{name}_mask" for name in ("csf", "lesion")])
    layout = recognise(folder)
    assert layout.classes == {"csf": 1, "lesion": 2}
    assert {name: Path(path).name for name, path in layout.cases[0]["label"].items()} == {
        "csf": "sub-01_label-csf_mask.nii.gz",
        "lesion": "sub-01_label-lesion_mask.nii.gz",
    }
    assert again(layout, folder) == layout.cases


def test_labels_made_by_hand_come_before_those_of_a_pipeline(tmp_path):
    folder = bids(
        tmp_path, ["anat/{s}_T1w"], ["fmriprep:anat/{s}_desc-aseg_dseg", "manual:anat/{s}_dseg", "x:anat/{s}_dseg"]
    )
    layout = recognise(folder)
    assert all("/manual/" in case["label"] for case in layout.cases)
    assert any("fmriprep" in note for note in layout.notes)
    assert layout.datalist["pipeline"] == "manual"


def test_subjects_without_label_are_left_out_with_a_note(tmp_path):
    folder = bids(tmp_path, ["anat/{s}_T1w"], ["anat/{s}_dseg"])
    bids(tmp_path, ["anat/{s}_T1w"], [], subjects=("09",))
    layout = recognise(folder)
    assert len(layout.cases) == 3
    assert any("1 of 4 images" in note for note in layout.notes)
    assert again(layout, folder) == layout.cases


def test_tables_of_classes_and_participants(tmp_path):
    folder = bids(tmp_path, ["anat/{s}_T1w"], ["manual:anat/{s}_dseg"])
    (folder / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tliver\n5\tspleen\n")
    rows = ["participant_id\tsplit", "sub-01\ttrain", "sub-02\tval", "sub-03\ttest"]
    (folder / "participants.tsv").write_text("\n".join(rows))
    layout = recognise(folder)
    assert layout.classes == {"liver": 1, "spleen": 5}
    assert [case["split"] for case in layout.cases] == ["train", "validation", "test"]
    (folder / "participants.tsv").write_text("\n".join([*rows[:2], "sub-02\t7", "sub-03\ttest"]))
    with pytest.raises(ValueError, match=r"participants\.tsv: split is '7'"):
        recognise(folder)


def test_real_data(sample_data):
    layout = recognise(sample_data / "ISLES2022")
    assert sorted(layout.channel_names) == ["adc", "dwi"]
    assert layout.datalist["label"] == "msk"
    assert again(layout, sample_data / "ISLES2022") == layout.cases
