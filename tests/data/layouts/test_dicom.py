from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage, generate_uid

from medsaga.data import dicom_datalist, recognise
from medsaga.reading import open_image
from tests.reading.dicom_phantoms import write_series

from .conftest import again


def series(folder: Path, patient: str, study: str = "", **options) -> str:
    """A CT series; its UID."""
    uid = generate_uid()

    def edit(image, k):
        image.PatientID, image.PatientName = patient, "Huber^Ann"
        image.StudyInstanceUID = study or image.StudyInstanceUID

    folder.mkdir(parents=True, exist_ok=True)
    write_series(folder, uid=uid, keep=range(12), edit=edit, **options)
    return uid


def label(path: Path, kind: str, names: list[str], uid: str = "", study: str = "", frame: str = "") -> Path:
    """The headers of a SEG or RTSTRUCT that refers to a series."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SegmentationStorage if kind == "SEG" else RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.SeriesInstanceUID, found.StudyInstanceUID = generate_uid(), study or generate_uid()
    found.PatientID, found.Modality = "elsewhere", kind
    referred = Dataset()
    referred.SeriesInstanceUID = uid
    if kind == "SEG":
        if uid:
            found.ReferencedSeriesSequence = [referred]
        found.SegmentSequence = [Dataset() for _ in names]
        for number, (segment, name) in enumerate(zip(found.SegmentSequence, names), 1):
            segment.SegmentNumber, segment.SegmentLabel = number, name
    else:
        referring, of_study = Dataset(), Dataset()
        referring.FrameOfReferenceUID = frame or generate_uid()
        if uid:
            of_study.RTReferencedSeriesSequence = [referred]
            referring.RTReferencedStudySequence = [of_study]
        found.ReferencedFrameOfReferenceSequence = [referring]
        found.StructureSetROISequence = [Dataset() for _ in names]
        for number, (roi, name) in enumerate(zip(found.StructureSetROISequence, names), 1):
            roi.ROINumber, roi.ROIName = number, name
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, write_like_original=False)
    return path


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
@pytest.mark.parametrize("beside", [True, False])
def test_labels_find_the_series_that_they_refer_to(tmp_path, kind, beside):
    """In the series' folder, as treatment planning exports them, or in one of their own."""
    expected = {}
    for n, names in enumerate((["liver"], ["liver", "spleen"])):
        uid = series(tmp_path / f"p{n}" / "ct", f"id{n}")
        where = tmp_path / f"p{n}" / ("ct" if beside else "labels") / "RS.1.2.dcm"
        expected[str(tmp_path / f"p{n}" / "ct")] = str(label(where, kind, names, uid))
    series(tmp_path / "p0" / "scout", "id0")
    layout = recognise(tmp_path)
    assert {case["image"]: case["label"] for case in layout.cases} == expected
    assert layout.classes == {"liver": 1, "spleen": 2}
    assert len({case["patient"] for case in layout.cases}) == 2
    assert any("1 of 3 series have no label" in note for note in layout.notes)
    assert again(layout, tmp_path) == layout.cases
    for case in layout.cases:
        assert open_image(case["image"]).grid.shape[2] == 12


def test_two_series_in_one_folder(tmp_path):
    first, second = (series(tmp_path, "x", prefix=prefix) for prefix in ("a", "b"))
    label(tmp_path / "seg.dcm", "SEG", ["liver"], second)
    layout = recognise(tmp_path)
    assert [case["image"] for case in layout.cases] == [str(tmp_path / second)]
    assert first != second
    open_image(layout.cases[0]["image"])


def test_patients_are_the_same_by_id_and_their_ids_are_kept_nowhere(tmp_path):
    for n, patient in enumerate(("Huber-1950", "Huber-1950", "Maier-1960")):
        label(tmp_path / f"seg{n}.dcm", "SEG", ["liver"], series(tmp_path / f"exam{n}", patient))
    layout = recognise(tmp_path)
    first, second, third = (case["patient"] for case in layout.cases)
    assert first == second != third
    assert not any(word in str(layout) for word in ("Huber", "Maier", "1950"))


def test_a_label_without_reference_is_of_the_one_series_of_its_frame_or_study(tmp_path):
    frame, study = generate_uid(), generate_uid()
    series(tmp_path / "a", "a", frame=frame)
    series(tmp_path / "b", "b", study=study)
    label(tmp_path / "x" / "rs.dcm", "RTSTRUCT", ["liver"], frame=frame)
    label(tmp_path / "y" / "seg.dcm", "SEG", ["liver"], study=study)
    assert {Path(case["image"]).name: Path(case["label"]).parent.name for case in dicom_datalist(tmp_path)} == {
        "a": "x",
        "b": "y",
    }


def test_labels_that_refer_to_nothing_or_to_the_same(tmp_path):
    uid = series(tmp_path / "a", "a")
    label(tmp_path / "seg.dcm", "SEG", ["liver"], generate_uid())
    with pytest.raises(FileNotFoundError, match=r"seg\.dcm refer to series that are not there"):
        recognise(tmp_path)
    for n in range(2):
        label(tmp_path / f"seg{n}.dcm", "SEG", ["liver"], uid)
    with pytest.raises(ValueError, match=r"seg0\.dcm and .*seg1\.dcm are labels of the same series"):
        recognise(tmp_path)


@pytest.mark.parametrize("where", ["case{n}/mask.nii.gz", "labels/case{n}.nii.gz"])
def test_volumes_as_labels_of_series(tmp_path, where):
    """A NIfTI beside the folder of the slices, or of its name."""
    for n in range(3):
        folder = tmp_path / (f"case{n}/dicom" if "mask" in where else f"images/case{n}")
        series(folder, f"id{n}")
        path = tmp_path / where.format(n=n)
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), path)
    layout = recognise(tmp_path)
    assert len(layout.cases) == 3
    for n, case in enumerate(layout.cases):
        assert Path(case["label"]) == tmp_path / where.format(n=n)
        assert open_image(case["image"]).grid.shape[2] == 12
        assert f"case{n}" in case["image"]
    assert again(layout, tmp_path) == layout.cases


def test_xrays_are_images_of_their_own(tmp_path):
    source = tmp_path / "source"
    series(source, "x")
    for n, path in enumerate(sorted(source.iterdir())[:3]):
        image = pydicom.dcmread(path)
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        image.save_as(tmp_path / "data" / "images" / f"film{n}.dcm")
        mask = tmp_path / "data" / "masks" / f"film{n}.nii.gz"
        mask.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((4, 4, 1), np.uint8), np.eye(4)), mask)
    layout = recognise(tmp_path / "data")
    assert [Path(case["image"]).name for case in layout.cases] == ["film0.dcm", "film1.dcm", "film2.dcm"]
    assert again(layout, tmp_path / "data") == layout.cases
