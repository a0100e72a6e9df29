"""Masks of DICOM images as DICOM SEG: against what was drawn, read by pydicom alone."""

from __future__ import annotations

import importlib.util

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor

from medsaga.transforms import OrientSlicesd, ReadImaged, SaveMaskd

from ..integration.dicom.series import RAS_TO_LPS, oblique_affine, write_volume

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed (pip install medsaga[label])"
)
CLASSES = ["background", "spleen", "tumour"]


def voxels(seed):
    """Noise with a block of 1,000 and one of 2,000, without symmetry."""
    values = np.random.RandomState(seed).randint(0, 400, (16, 13, 9))
    values[3:9, 2:6, 1:4], values[10:14, 5:11, 5:8] = 1000, 2000
    return values


def segmented(path):
    """The blocks' class numbers on the file's grid, as ``Invertd`` hands them over."""
    orient = OrientSlicesd("image")
    data = orient(ReadImaged("image")({"image": str(path)}))
    data["image"] = MetaTensor((data["image"] / 1000 + 0.1).floor().as_tensor(), meta=data["image"].meta,
                               applied_operations=data["image"].applied_operations)  # fmt: skip
    return {"pred": orient.inverse(data)["image"]}


@pytest.fixture
def folder(tmp_path):
    """Two series in one folder; the first's slices run against rows × columns."""
    (tmp_path / "study").mkdir()
    affines = [oblique_affine((0.8, 0.9, 2.5), (5, 6, 7 * k), not k) for k in range(2)]
    series = [write_volume(tmp_path / "study", voxels(k), affines[k], "CT", f"p{k}") for k in range(2)]
    return tmp_path / "study", series


def test_one_series_of_a_folder(folder, tmp_path):
    study, series = folder
    for made in series:
        out = SaveMaskd("pred", tmp_path / "out", output_ext=".dcm", class_names=CLASSES)(segmented(study / made.uid))
        assert out["pred"].meta["saved_to"] == str(tmp_path / "out" / f"{made.uid}_seg.dcm")
        seg = pydicom.dcmread(out["pred"].meta["saved_to"])
        assert (seg.StudyInstanceUID, seg.PatientID) == (made.study, pydicom.dcmread(made.files[0]).PatientID)
        names = {s.SegmentNumber: s.SegmentLabel for s in seg.SegmentSequence}
        assert sorted(names.values()) == ["spleen", "tumour"]
        to_series = np.linalg.inv(RAS_TO_LPS @ made.affine)
        found = np.zeros(made.voxels.shape, np.uint8)
        shared = seg.SharedFunctionalGroupsSequence[0]
        cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
        for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence):
            row, column = np.nonzero(frame)
            points = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
            points = points + np.outer(column * right, cosines[0]) + np.outer(row * down, cosines[1])
            index = np.rint(points @ to_series[:3, :3].T + to_series[:3, 3]).astype(int)
            name = names[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
            found[tuple(index.T)] = CLASSES.index(name)
        np.testing.assert_array_equal(found, made.voxels // 1000)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_one_slice_named_by_its_file(folder, tmp_path):
    _, (series, _) = folder
    path = next(p for p in series.files if pydicom.dcmread(p).pixel_array.max() > 2900)  # HU + 1024
    out = SaveMaskd("pred", tmp_path / "out", output_ext=".dcm", class_names=CLASSES)(segmented(path))
    seg, image = pydicom.dcmread(out["pred"].meta["saved_to"]), pydicom.dcmread(path)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["tumour"]
    np.testing.assert_array_equal(seg.pixel_array, image.pixel_array >= 2000 + 1024)


def test_what_has_no_series_or_no_voxel_is_refused_by_name(folder, tmp_path):
    study, (series, _) = folder
    save = SaveMaskd("pred", tmp_path / "out", output_ext=".dcm", class_names=CLASSES)
    (tmp_path / "a.nii.gz").touch()
    mask = MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": str(tmp_path / "a.nii.gz")})
    with pytest.raises(ValueError, match=r"a\.nii\.gz: it is not DICOM.*\.nii\.gz"):
        save({"pred": mask})
    nothing = segmented(study / series.uid)
    nothing["pred"] = nothing["pred"] * 0
    with pytest.raises(ValueError, match=f"{series.uid}: .*no voxel is segmented"):
        save(nothing)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="class_names"):
        SaveMaskd("pred", tmp_path, output_ext=".dcm")
