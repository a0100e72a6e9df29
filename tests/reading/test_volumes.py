import gzip
import logging

import itk
import nibabel as nib
import numpy as np
import pytest

from medsaga.reading.image import ReadingError
from medsaga.reading.padding import replace_padding
from medsaga.reading.volumes import open_volume

from .volume_inputs import AFFINE, INPUTS, OBLIQUE, VALUES, Input

_BY_NAME = {row.name: row for row in INPUTS}
_NOT_BY_ITK = ("NRRD one layer", "NRRD bzip2", "NRRD two axes", "MetaImage two axes")


def _located(image, values):
    """Centre in mm, and ml, of what is bright."""
    bright = np.argwhere(values > (float(values.min()) + float(values.max())) / 2)
    centre = image.grid.affine[:3, :3] @ bright.mean(axis=0) + image.grid.affine[:3, 3]
    return centre, len(bright) * abs(np.linalg.det(image.grid.affine[:3, :3])) / 1000


@pytest.mark.parametrize("row", INPUTS, ids=lambda row: row.name)
def test_every_volume_is_right_or_refused_by_name(tmp_path, row: Input):
    path = row.make(tmp_path)
    if row.refused and row.channels == 1:
        with pytest.raises(ReadingError, match=row.refused) as error:
            open_volume(path).load()
        assert str(error.value).startswith(f"{path}: ")
        return
    image = open_volume(path)
    values = image.load()
    assert values.shape == (*image.grid.shape, *[row.channels] * (row.channels > 1))
    assert values.dtype.isnative
    assert values.flags.writeable
    assert image.grid.placed and image.grid.unit == "mm" and image.grid.channels == row.channels
    for channel in np.moveaxis(values, -1, 0) if row.channels > 1 else [values]:
        centre, ml = _located(image, channel)
        np.testing.assert_allclose(centre, row.centre, atol=1e-3)
        assert ml == pytest.approx(row.ml, rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        row.name
        for row in INPUTS
        if not row.refused and not row.name.startswith("NIfTI") and row.name not in _NOT_BY_ITK
    ],
)
def test_nrrd_and_metaimage_lie_where_itk_has_them(tmp_path, name):
    path = _BY_NAME[name].make(tmp_path)
    image = open_volume(path)
    theirs = itk.imread(str(path))
    for voxel in ((0, 0, 0), (47, 0, 0), (3, 39, 0), (5, 7, 19)):
        ours = image.grid.affine @ [*voxel, 1]
        point = np.array(theirs.TransformIndexToPhysicalPoint(voxel))
        np.testing.assert_allclose(ours[:3], point * [-1, -1, 1], atol=1e-4)
    np.testing.assert_array_equal(image.load(), itk.array_from_image(theirs).T)


@pytest.mark.parametrize(
    "name",
    [row.name for row in INPUTS if not row.refused and row.name.startswith("NIfTI") and "pad" not in row.name],
)
def test_nifti_reads_as_nibabel_reads_it(tmp_path, name):
    path = _BY_NAME[name].make(tmp_path)
    image, theirs = open_volume(path), nib.load(path)
    scale = np.diag([1000, 1000, 1000, 1]) if "metres" in name else np.eye(4)
    np.testing.assert_allclose(image.grid.affine, scale @ theirs.affine, atol=1e-4)
    np.testing.assert_allclose(image.load(), theirs.get_fdata().reshape(image.grid.shape), rtol=1e-6)


def test_itk_too_reads_metres_as_mm(tmp_path):
    path = _BY_NAME["NIfTI in metres"].make(tmp_path)
    theirs = itk.imread(str(path))
    np.testing.assert_allclose(np.array(theirs.GetSpacing()), open_volume(path).grid.spacing, rtol=1e-5)


@pytest.mark.parametrize(
    "name, words",
    [
        ("NIfTI sform and qform apart", "5.0 voxels apart"),
        ("NIfTI without a form", "no affine"),
        ("NIfTI in metres", "in metres"),
        ("NRRD spacings only", "no directions"),
        ("NRRD no space", "left-posterior-superior"),
    ],
)
def test_what_was_assumed_is_said(tmp_path, name, words):
    path = _BY_NAME[name].make(tmp_path)
    (notice,) = open_volume(path).notices
    assert notice.startswith(f"{path}: ")
    assert words in notice


def test_good_files_need_no_words(tmp_path, caplog):
    for name in ("NIfTI oblique", "NRRD LPS", "MetaImage compressed", "NIfTI qform only, oblique"):
        image = open_volume(_BY_NAME[name].make(tmp_path))
        image.load()
        assert image.notices == ()
    assert not caplog.records


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_values_keep_their_type(tmp_path, dtype):
    for order in "<>":
        stored = np.dtype(dtype).newbyteorder(order)
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(stored)
        nib.save(nib.Nifti1Image(VALUES.astype(stored), AFFINE, header, dtype=stored), tmp_path / "a.nii")
        values = open_volume(tmp_path / "a.nii").load()
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, VALUES.astype(dtype))


def test_rescaled_values_are_float32(tmp_path):
    values = open_volume(_BY_NAME["NIfTI scaled"].make(tmp_path)).load()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, VALUES * np.float32(0.5) - 1024)


def test_shear_is_kept(tmp_path):
    path = _BY_NAME["NIfTI sheared"].make(tmp_path)
    np.testing.assert_allclose(open_volume(path).grid.affine, nib.load(path).affine)


def test_gzip_of_several_members_and_padded_with_zeros(tmp_path):
    raw = nib.Nifti1Image(VALUES, OBLIQUE).to_bytes()
    parts = [raw[:1000], raw[1000:40000], raw[40000:]]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(512))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.nii.gz").load(), VALUES)


def test_missing_last_member_is_noticed(tmp_path):
    raw = nib.Nifti1Image(VALUES, OBLIQUE).to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:40000]))
    with pytest.raises(ReadingError, match="39648 of the 76800 bytes"):
        open_volume(tmp_path / "a.nii.gz").load()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_that_the_header_leaves_out_are_told(tmp_path, caplog, suffix):
    raw = nib.Nifti1Image(VALUES, AFFINE).to_bytes() + VALUES[..., :3].tobytes(order="F")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    np.testing.assert_array_equal(open_volume(path).load(), VALUES)
    assert "3 slices" in caplog.text and str(path) in caplog.text


def test_a_stream_that_does_not_end_is_left(tmp_path):
    raw = nib.Nifti1Image(VALUES, AFFINE).to_bytes() + bytes(2**24 + 2**21)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(ReadingError, match="16 MB follow"):
        open_volume(tmp_path / "a.nii.gz").load()


def test_limit_is_that_of_the_environment(tmp_path, monkeypatch):
    path = _BY_NAME["MetaImage"].make(tmp_path)
    monkeypatch.setenv("MEDSAGA_MAX_IMAGE_GB", "0.0001")
    with pytest.raises(ReadingError, match="MEDSAGA_MAX_IMAGE_GB"):
        open_volume(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.nii.gz"):
        open_volume(tmp_path / "gone.nii.gz")


def test_upper_case_suffix(tmp_path):
    path = _BY_NAME["NIfTI oblique"].make(tmp_path).rename(tmp_path / "SCAN.NII.GZ")
    np.testing.assert_array_equal(open_volume(path).load(), VALUES)


def _with_padding(padding, dtype=np.int16):
    values = np.random.default_rng(0).integers(-1000, 400, (20, 20, 10)).astype(dtype)
    values[0, 0, 0] = -1000
    outside = np.zeros(values.shape, dtype=bool)
    outside[:4] = True
    return np.where(outside, dtype(padding), values), np.where(outside, dtype(values[4:].min()), values)


@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -32768])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_padding_becomes_the_smallest_measured_value(padding, dtype):
    values, truth = _with_padding(padding, dtype)
    found, notice = replace_padding(values.copy(), "a.nii")
    np.testing.assert_array_equal(found, truth)
    assert found.dtype == dtype
    assert notice.startswith("a.nii: 20.0% of its voxels")
    assert str(padding) in notice


def test_padding_no_longer_moves_percentiles(tmp_path, caplog):
    values, _ = _with_padding(-2000)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    with caplog.at_level(logging.WARNING):
        found = open_volume(tmp_path / "a.nii.gz").load()
    assert np.percentile(values, 0.5) == -2000
    assert np.percentile(found, 0.5) >= -1000
    assert str(tmp_path / "a.nii.gz") in caplog.text


def test_values_that_are_no_padding_stay():
    values, _ = _with_padding(-1024)
    assert replace_padding(values, "a")[1] is None  # air
    values, _ = _with_padding(-2000)
    values[:4].flat[::2] = -1950
    assert replace_padding(values, "a")[1] is None  # measured values that reach down to it
    values = _with_padding(-1000)[0]
    values.flat[:3] = -2000
    assert replace_padding(values, "a")[1] is None  # 3 of 4000 voxels
    for odd in (np.full((4, 4), -2000), np.array([[np.nan, -3000.0, 0]]), np.array([[-np.inf, -3000.0, 0]])):
        before = odd.copy()
        after, notice = replace_padding(odd, "a")
        np.testing.assert_array_equal(after, before)
        assert notice is None


def test_labels_keep_every_value(tmp_path):
    values, _ = _with_padding(-2000)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(open_volume(tmp_path / "a.nii.gz", label=True).load(), values)
