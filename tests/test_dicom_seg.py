"""DICOM segmentations: against series whose voxels are known because they were drawn, read by pydicom alone."""

import importlib.util
import json

import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medsaga.dicom_seg import _CODES, _segment, label_key, read_seg, write_seg
from medsaga.reading import open_image
from medsaga.reading.dicom import series_files

from .integration.bundles import ROOT
from .integration.dicom.series import RAS_TO_LPS, oblique_affine, write_volume, write_xray
from .reading.dicom_phantoms import write_enhanced

needs_highdicom = pytest.mark.skipif(
    importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed (pip install medsaga[label])"
)
NAMES = {1: "spleen", 3: "left kidney"}


def test_codes_are_those_of_snomed():
    """Against pydicom's own table of the codes that DICOM names."""
    for name, (structure, modifier) in _CODES.items():
        for value, meaning in filter(None, (structure, modifier)):
            known = getattr(codes.SCT, meaning.title().replace(" ", ""))
            assert (known.value, known.meaning.lower()) == (value, meaning.lower()), name


@needs_highdicom
def test_amos_organs_have_one_each():
    names = json.loads((ROOT / "bundles" / "amos" / "configs" / "train.json").read_text())["class_names"][1:]
    private = [name for name in names if label_key(name) not in _CODES]
    assert private == ["prostate/uterus"], "one class, two organs"
    segments = [_segment(value, value, name, "test", True) for value, name in enumerate(names, start=1)]
    seen = {str(s.SegmentedPropertyTypeCodeSequence) for s in segments}
    assert len(seen) == len(names)


def drawn(shape):
    label = np.zeros(shape, np.uint8)
    label[2:5, 3:9], label[8:12, 1:3] = 1, 3
    if len(shape) == 3:
        label[..., :2], label[..., 5:] = 0, 0
        label[2, 3, 5] = 1  # no symmetry
    return label


def by_pydicom(path, series):
    """Value by voxel of the series as it was made, from where each frame says that it lies in the patient."""
    seg = pydicom.dcmread(path)
    found = np.zeros(series.voxels.shape, np.uint8)
    to_series = np.linalg.inv(RAS_TO_LPS @ series.affine)
    numbers = {s.SegmentNumber: {n: v for v, n in NAMES.items()}[s.SegmentLabel] for s in seg.SegmentSequence}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        shared = seg.SharedFunctionalGroupsSequence[0]
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
        row, column = np.nonzero(frame)
        points = origin + np.outer(column * right, cosines[0]) + np.outer(row * down, cosines[1])
        index = points @ to_series[:3, :3].T + to_series[:3, 3]
        np.testing.assert_allclose(index, np.rint(index), atol=0.02)
        found[tuple(np.rint(index).astype(int).T)] = numbers[number]
    return seg, found


@needs_highdicom
@pytest.mark.parametrize("flip", [False, True])
def test_a_volumes_mask_lies_where_it_was_drawn(tmp_path, flip):
    (tmp_path / "series").mkdir()
    affine = oblique_affine((0.8, 0.9, 2.5), (-15, 20, 110), flip)
    voxels = np.random.RandomState(0).randint(-900, 900, (14, 12, 8))
    series = write_volume(tmp_path / "series", voxels, affine, "CT", "seg")
    image = open_image(tmp_path / "series")
    # the label on the grid as it is read, from where it was drawn
    index = np.stack(np.meshgrid(*map(np.arange, image.grid.shape), indexing="ij"), -1).reshape(-1, 3)
    mine = series.world(image.grid.affine, index)
    label = drawn(voxels.shape)[tuple(mine.T)].reshape(image.grid.shape)
    write_seg(label, image.grid, NAMES, series_files(tmp_path / "series"), tmp_path / "seg.dcm", automatic=True)
    seg, found = by_pydicom(tmp_path / "seg.dcm", series)
    np.testing.assert_array_equal(found, drawn(voxels.shape))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series.uid
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"AUTOMATIC"}
    assert seg.PatientID == "seg", "the patient is the series' own"
    values = {name.upper(): value for value, name in NAMES.items()}
    np.testing.assert_array_equal(read_seg(seg, image.grid, values), label)


@needs_highdicom
@pytest.mark.parametrize(
    "elements",
    [
        {"FrameOfReferenceUID": None},
        {"FrameOfReferenceUID": ""},
        {"PatientID": None, "PatientName": None, "PatientBirthDate": None, "PatientSex": None},
        {"StudyID": None, "StudyDate": None, "StudyTime": None, "AccessionNumber": None},
        {"PatientBirthDate": "00000000", "PatientAge": "66", "PatientSex": "male"},
        {"StudyDate": "2026-01-02", "StudyTime": "10:15:30"},
        {"SpecificCharacterSet": None},
        {"NumberOfFrames": 1},
        {"SliceThickness": ""},
        {"SOPClassUID": "1.3.46.670589.11.0.0.12.1"},
    ],
    ids=str,
)
def test_headers_as_hospitals_have_them(tmp_path, elements):
    (tmp_path / "series").mkdir()
    affine = oblique_affine((1, 1, 2), (0, 0, 0), False)
    series = write_volume(tmp_path / "series", np.random.RandomState(0).randint(0, 900, (14, 12, 8)), affine, "CT", "x")
    for file in series.files:
        image = pydicom.dcmread(file)
        for name, value in elements.items():
            if value is None:
                delattr(image, name)
            else:
                image.add(pydicom.DataElement(name, dictionary_VR(name), value, validation_mode=config.IGNORE))
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.save_as(file)
    grid, files = open_image(tmp_path / "series").grid, series_files(tmp_path / "series")
    write_seg(drawn(grid.shape), grid, NAMES, files, tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_seg(seg, grid, {n: v for v, n in NAMES.items()}), drawn(grid.shape))
    (referenced,) = {i.ReferencedSOPClassUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == image.SOPClassUID
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        assert seg[name].value == (pydicom.dcmread(files[0]).get(name) or ""), name


@needs_highdicom
@pytest.mark.parametrize("name", ["", "a\\b", "a\nb"])
def test_a_name_that_cannot_be_a_label_is_refused(tmp_path, name):
    series = write_xray(tmp_path, np.random.RandomState(0).randint(0, 900, (14, 12)), "DX", "x")
    with pytest.raises(ValueError, match="cannot be the label of a segment"):
        write_seg(
            drawn((14, 12)), open_image(series.files[0]).grid, {1: "a", 3: name}, series.files, tmp_path / "seg.dcm"
        )
    assert not (tmp_path / "seg.dcm").exists()


@needs_highdicom
def test_an_instance_without_a_uid_is_refused(tmp_path):
    (file,) = write_xray(tmp_path, np.random.RandomState(0).randint(0, 900, (14, 12)), "DX", "x").files
    image = pydicom.dcmread(file)
    del image.StudyInstanceUID
    image.save_as(file)
    with pytest.raises(ValueError, match="without StudyInstanceUID"):
        write_seg(drawn((14, 12)), open_image(file).grid, NAMES, [file], tmp_path / "seg.dcm")


@needs_highdicom
def test_a_scout_of_the_same_series_is_no_part_of_it(tmp_path):
    (tmp_path / "series").mkdir()
    affine = oblique_affine((1, 1, 2), (0, 0, 0), False)
    series = write_volume(tmp_path / "series", np.random.RandomState(0).randint(0, 900, (14, 12, 8)), affine, "CT", "x")
    scout = pydicom.dcmread(series.files[0])
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    scout.ImageOrientationPatient, scout.ImageType = [1, 0, 0, 0, 0, -1], ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.save_as(tmp_path / "series" / "0.dcm")
    image, files = open_image(tmp_path / "series"), series_files(tmp_path / "series")
    assert set(files) == set(series.files)
    write_seg(drawn(image.grid.shape), image.grid, NAMES, files, tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    referenced = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert scout.SOPInstanceUID not in referenced
    np.testing.assert_array_equal(read_seg(seg, image.grid, {n: v for v, n in NAMES.items()}), drawn(image.grid.shape))


@needs_highdicom
def test_an_xrays_mask_is_tied_to_its_pixels(tmp_path):
    (tmp_path / "series").mkdir()
    write_xray(tmp_path / "series", np.random.RandomState(0).randint(0, 900, (14, 12)), "DX", "x", inverted=True)
    image, label = open_image(tmp_path / "series"), drawn((14, 12))
    write_seg(label, image.grid, NAMES, series_files(tmp_path / "series"), tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert "FrameOfReferenceUID" not in seg
    found = np.zeros(label.shape, np.uint8)
    for frame, value in zip(seg.pixel_array, NAMES):
        found[frame.T > 0] = value
    np.testing.assert_array_equal(found, label)


@needs_highdicom
def test_a_mask_of_nothing_cannot_be_one(tmp_path):
    series = write_xray(tmp_path, np.random.RandomState(0).randint(0, 900, (14, 12)), "DX", "x")
    grid = open_image(series.files[0]).grid
    with pytest.raises(ValueError, match="no voxel is segmented"):
        write_seg(np.zeros((14, 12), np.uint8), grid, NAMES, series.files, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


@needs_highdicom
def test_frames_of_an_enhanced_file_are_referred_to_by_number(tmp_path):
    order = np.random.RandomState(0).permutation(20).tolist()
    path = write_enhanced(tmp_path / "enhanced.dcm", frames=order)
    image = open_image(path)
    label = np.zeros(image.grid.shape, np.uint8)
    label[3:9, 4:20, 7:10], label[10, 30, 9] = 1, 3
    write_seg(label, image.grid, NAMES, series_files(path), tmp_path / "seg.dcm")
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(path)
    found = np.zeros(label.shape, np.uint8)
    names = {s.SegmentNumber: {n: v for v, n in NAMES.items()}[s.SegmentLabel] for s in seg.SegmentSequence}
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence):
        (referred,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert referred.ReferencedSOPInstanceUID == source.SOPInstanceUID
        k = order[referred.ReferencedFrameNumber - 1]  # the slice that was written as this frame
        value = names[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        found[..., k][frame.T > 0] = value
    np.testing.assert_array_equal(found, label)
    np.testing.assert_array_equal(read_seg(seg, image.grid, {n: v for v, n in NAMES.items()}), label)
    (instance,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
