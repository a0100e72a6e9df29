"""DICOM is read as what it is, or refused by name: against phantoms, pydicom and SimpleITK."""

from __future__ import annotations

import io
import os
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medsaga.reading import ReadingError, dicom_decoder, open_image
from medsaga.reading.dicom import is_dicom, list_series, open_dicom, series_files

from . import dicom_phantoms as make
from .dicom_inputs import INPUTS, Input, beside, setting, tilt, uid_of, write_scout


def bright(values: np.ndarray) -> np.ndarray:
    """Indices (N, rank) of voxels above 0.9 of the range."""
    low, high = float(values.min()), float(values.max())
    return np.argwhere(values > low + 0.9 * (high - low))


@pytest.mark.parametrize("row", INPUTS, ids=[row.name for row in INPUTS])
def test_every_input_is_read_right_or_refused_by_name(row: Input, tmp_path: Path) -> None:
    path = row.make(tmp_path)
    if row.refused:
        with pytest.raises(ReadingError, match=row.refused) as refusal:
            open_image(path).load()
        assert str(tmp_path) in str(refusal.value) and "Secret" not in str(refusal.value)
        return
    image = open_image(path)
    values = image.load()
    assert values.shape == image.grid.shape and values.dtype in (np.int16, np.int32, np.float32)
    found = bright(values)
    if row.pixels:
        assert len(found) == row.pixels and found.mean(axis=0)[:2].tolist() == [23.5, 15.5]
        return
    affine = image.grid.affine
    assert len(found) * abs(np.linalg.det(affine[:3, :3])) / 1000 == pytest.approx(row.ml, rel=1e-3)
    np.testing.assert_allclose(affine[:3, :3] @ found.mean(axis=0) + affine[:3, 3], row.centre, atol=0.1)


def test_the_table_is_large_enough_and_its_names_are_unique() -> None:
    assert len(INPUTS) >= 45
    assert len({row.name for row in INPUTS}) == len(INPUTS)


# --- volumes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [make.AXIAL, make.SAGITTAL, make.CORONAL, make.turned((12, -9, 20))])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.JPEGLosslessSV1])
def test_each_voxel_and_its_place_are_those_that_were_written(axes: np.ndarray, syntax: str, tmp_path: Path) -> None:
    make.write_series(tmp_path, axes=axes, syntax=syntax)
    image = open_dicom(tmp_path)
    np.testing.assert_array_equal(image.load(), make.voxels())
    np.testing.assert_allclose(image.grid.affine, make.truth_affine(axes), atol=1e-4)
    assert image.grid.placed and image.grid.unit == "mm" and image.modality == "CT" and not image.notices


def test_a_volume_is_that_of_simpleitk(tmp_path: Path) -> None:
    make.write_series(tmp_path, axes=make.turned((30, 5, -40)), rescale=lambda k: (0.5, -1024))
    image = open_dicom(tmp_path)
    other = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    np.testing.assert_allclose(image.load(), sitk.GetArrayFromImage(other).T)
    for index in ((0, 0, 0), (47, 39, 19), (3, 30, 11)):
        lps = np.array(other.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(image.grid.affine @ [*index, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless])
def test_frames_of_an_enhanced_file_land_on_their_slices(syntax: str, tmp_path: Path) -> None:
    frames = np.random.RandomState(3).permutation(20).tolist()
    path = make.write_enhanced(tmp_path / "a.dcm", frames=frames, rescale=lambda k: (1 + k, -1000), syntax=syntax,
                               values=make.voxels() // 100 * 0 + np.arange(20) * 21 - 1000)  # fmt: skip
    values = open_dicom(path).load()
    stored = pydicom.dcmread(path).pixel_array
    for frame, k in enumerate(frames):
        np.testing.assert_allclose(values[:, :, k], stored[frame].T * (1.0 + k) - 1000)


def test_random_orientations(tmp_path: Path) -> None:
    random = np.random.RandomState(7)
    for n in range(20):
        q, _ = np.linalg.qr(random.normal(size=(3, 3)))
        axes = np.array([q[0], q[1], np.cross(q[0], q[1])])
        keep = random.permutation(20)[:1] if n % 5 == 0 else range(20)
        spacing = (0.5, 0.8, 2.0)
        make.write_series(tmp_path / str(n), axes=axes, keep=keep, spacing=spacing)
        image = open_dicom(tmp_path / str(n))
        truth = make.truth_affine(axes, spacing)
        truth[:3, 3] += truth[:3, 2] * (min(keep))
        np.testing.assert_allclose(image.grid.affine, truth, atol=1e-4)


def test_slices_in_descending_order_come_out_ascending_along_rows_by_columns(tmp_path: Path) -> None:
    left_handed = make.AXIAL * np.array([[1], [1], [-1]])
    make.write_series(tmp_path, axes=left_handed)  # slice 0 is the highest
    image = open_dicom(tmp_path)
    assert np.linalg.det(make.truth_affine(left_handed)[:3, :3]) < 0 < np.linalg.det(image.grid.affine[:3, :3])
    np.testing.assert_array_equal(image.load(), make.voxels()[:, :, ::-1])


def test_thickness_is_the_extent_of_a_single_slice_only(tmp_path: Path) -> None:
    (file,) = make.write_series(tmp_path / "a", keep=[3], edit=setting(SliceThickness="7"))
    assert open_dicom(file).grid.shape == (48, 40, 1) and open_dicom(file).grid.spacing == (1, 1, 7)
    make.write_series(tmp_path / "b", edit=setting(SliceThickness="7"))
    assert open_dicom(tmp_path / "b").grid.spacing == pytest.approx((1, 1, 2))


@pytest.mark.parametrize(("largest", "ok"), [(0.3, True), (0.9, False)])
def test_slices_may_be_off_their_place_by_a_fifth_of_the_spacing(largest: float, ok: bool, tmp_path: Path) -> None:
    make.write_series(tmp_path, heights=lambda k: 2 * k + largest * (-1) ** k)
    (series,) = list_series(tmp_path)
    assert (series.problem is None) is ok


def test_a_drift_is_refused_by_its_extent_over_the_whole_volume(tmp_path: Path) -> None:
    # 0.2 pixels from the line through the middle of 38 mm are reached at 0.6 degrees
    make.write_series(tmp_path / "a", shift=tilt(0.5))
    make.write_series(tmp_path / "b", shift=tilt(0.7))
    assert list_series(tmp_path / "a")[0].problem is None
    assert "0.7 degrees" in str(list_series(tmp_path / "b")[0].problem)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept", "dtype"), [(1, 0, np.int32), (1, -0.5, np.float32), (2, 0, np.float32)])
def test_values_stay_integers_where_they_are(slope: float, intercept: float, dtype: type, tmp_path: Path) -> None:
    values = make.voxels().astype(float) * slope + intercept
    make.write_series(tmp_path, rescale=lambda k: (slope, intercept), values=values)
    loaded = open_dicom(tmp_path).load()
    assert loaded.dtype == dtype
    np.testing.assert_allclose(loaded, values)


def test_twelve_bits_fit_int16(tmp_path: Path) -> None:
    make.write_series(tmp_path, edit=setting(BitsStored=12, HighBit=11))
    loaded = open_dicom(tmp_path).load()
    assert loaded.dtype == np.int16
    np.testing.assert_array_equal(loaded, make.voxels())


def test_twelve_signed_bits_get_their_sign(tmp_path: Path) -> None:
    values = make.voxels() - 500

    def edit(image: Dataset, k: int) -> None:  # zeros above the stored bits, as the standard allows
        image.PixelData = (np.frombuffer(image.PixelData, np.uint16) & 0x0FFF).tobytes()
        image.BitsStored, image.HighBit = 12, 11

    make.write_series(tmp_path, dtype=np.int16, rescale=lambda k: (1, 0), values=values, edit=edit)
    np.testing.assert_array_equal(open_dicom(tmp_path).load(), values)


def test_values_beyond_the_stored_bits_are_refused(tmp_path: Path) -> None:
    make.write_series(tmp_path, edit=setting(range(4, 5), BitsStored=10, HighBit=9))
    with pytest.raises(ReadingError, match=r"do not fit the 10 bits"):
        open_dicom(tmp_path).load()


def test_padding_is_the_lowest_value_of_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = make.voxels() - 7
    stored = values + 1024

    def edit(image: Dataset, k: int) -> None:
        rows = stored[:, :, k].T.astype(np.uint16)
        rows[:3] = 63536
        image.PixelData = rows.tobytes()
        image.add_new("PixelPaddingValue", "SS", -2000)

    make.write_series(tmp_path, edit=edit)
    image = open_dicom(tmp_path)
    with caplog.at_level("INFO", "medsaga"):
        loaded = image.load()
    np.testing.assert_array_equal(loaded[:, 3:], values[:, 3:])
    assert (loaded[:, :3] == values[:, 3:].min()).all()
    assert "PixelPaddingValue" in image.notices[0] and f"{3 * 48 * 20} of {48 * 40 * 20} voxels" in caplog.text


def test_an_image_of_nothing_but_padding_is_left_as_it_is(tmp_path: Path) -> None:
    make.write_series(tmp_path, values=make.voxels() * 0, edit=lambda i, k: i.add_new("PixelPaddingValue", "US", 1024))
    assert (open_dicom(tmp_path).load() == 0).all()


@pytest.mark.parametrize("bits", [12, 16])
def test_monochrome1_is_turned_round_within_its_bits_as_itk_does(bits: int, tmp_path: Path) -> None:
    pixels = 4095 - make.xray_pixels()
    path = make.write_picture(tmp_path / "a.dcm", pixels, kind="MONOCHROME1", bits=bits)
    loaded = open_dicom(path).load()
    np.testing.assert_array_equal(loaded, 2**bits - 1 - pixels.astype(int))
    np.testing.assert_array_equal(loaded, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].T)


def test_monochrome1_of_signed_and_rescaled_pixels(tmp_path: Path) -> None:
    pixels = make.xray_pixels(np.int16) - 300
    edit = setting(RescaleSlope="2", RescaleIntercept="10")
    path = make.write_picture(tmp_path / "a.dcm", pixels, kind="MONOCHROME1", edit=edit)
    np.testing.assert_allclose(open_dicom(path).load(), (-1.0 - pixels) * 2 + 10)


def test_hounsfield_units_of_monochrome1_slices_are_left_alone(tmp_path: Path) -> None:
    make.write_series(tmp_path, edit=setting(PhotometricInterpretation="MONOCHROME1"))
    image = open_dicom(tmp_path)
    np.testing.assert_array_equal(image.load(), make.voxels())
    assert "MONOCHROME1" in image.notices[0]


def test_a_modality_table_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [1130, 0, 16])
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "US", list(range(5, 5 + 3 * 1130, 3)))
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), edit=setting(ModalityLUTSequence=[table]))
    np.testing.assert_array_equal(open_dicom(path).load(), make.xray_pixels().astype(int) * 3 + 5)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("element", "spacing", "unit"), [("PixelSpacing", (0.5, 0.7), "mm"),
                         ("ImagerPixelSpacing", (0.5, 0.7), "mm"), ("", (1, 1), "pixels")])  # fmt: skip
def test_an_xray_has_spacing_and_no_place(element: str, spacing: tuple, unit: str, tmp_path: Path) -> None:
    grid = open_dicom(make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), spacing=element)).grid
    assert grid.shape == (48, 40) and not grid.placed and grid.unit == unit
    np.testing.assert_allclose(grid.affine, np.diag([-spacing[0], -spacing[1], 1, 1]))


def colours() -> np.ndarray:
    """(48, 40, 3)."""
    x, y = np.meshgrid(np.arange(48), np.arange(40), indexing="ij")
    return np.stack([5 * x, 6 * y, 255 - 3 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless])
def test_colour_pictures(syntax: str, tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", colours(), kind="RGB", modality="US", spacing="", syntax=syntax)
    image = open_image(path)
    assert image.grid.channels == 3 and image.grid.shape == (48, 40)
    np.testing.assert_array_equal(image.load(), colours())


@pytest.mark.parametrize("kind", ["YBR_FULL_422", "YBR_FULL", "RGB"])
def test_jpeg_colours_are_those_that_the_codestream_declares(kind: str, tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", colours(), kind="RGB", modality="US", spacing="")
    file, image = io.BytesIO(), pydicom.dcmread(path)
    Image.fromarray(colours().swapaxes(0, 1)).save(file, "JPEG", quality=95)
    image.PixelData = encapsulate([file.getvalue()])
    image["PixelData"].is_undefined_length = True
    image.PhotometricInterpretation, image.file_meta.TransferSyntaxUID = kind, uid.JPEGBaseline8Bit
    image.save_as(path)
    np.testing.assert_array_equal(open_dicom(path).load(), np.asarray(Image.open(file)).swapaxes(0, 1))


def test_ybr_pixels_become_rgb(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(colours()).convert("YCbCr"))
    path = make.write_picture(tmp_path / "a.dcm", ybr, kind="YBR_FULL", modality="US", spacing="")
    np.testing.assert_allclose(open_dicom(path).load().astype(int), colours(), atol=3)


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    def edit(image: Dataset, k: int) -> None:
        for n, colour in enumerate(("Red", "Green", "Blue")):
            image.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
            table = (np.arange(256) * (n + 1) % 256).astype("<u2") << 8
            image.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())

    pixels = colours()[..., 0]
    path = make.write_picture(tmp_path / "a.dcm", pixels, kind="PALETTE COLOR", modality="US", spacing="", edit=edit)
    image = open_dicom(path)
    assert image.grid.channels == 3
    np.testing.assert_array_equal(image.load(), np.stack([pixels.astype(int) * n % 256 for n in (1, 2, 3)], axis=-1))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    make.write_series(tmp_path)
    beside(tmp_path)
    write_scout(tmp_path)
    (series,) = list_series(tmp_path)
    text = "\n".join(series.notices)
    for name in ("DICOMDIR", "Segmentation", "Basic Text SR", "Key Object", "Softcopy", "RT Structure", "PDF", "scout"):
        assert name in text
    assert "readme.txt" in text or "more: left out (no DICOM" in text
    assert series.path == tmp_path and len(series.files) == 20 and series.plane == "axial"


def test_several_series_are_listed_and_each_opens_by_its_path(tmp_path: Path) -> None:
    make.write_series(tmp_path)
    make.write_series(tmp_path, modality="MR", axes=make.SAGITTAL, prefix="MR")
    make.write_series(tmp_path, keep=[1, 2, 9], prefix="bad")
    series = {str(s.files[0].name)[:2]: s for s in list_series(tmp_path)}
    assert sorted(series) == ["IM", "MR", "ba"]
    assert series["IM"].path == tmp_path / uid_of(tmp_path) and series["ba"].problem
    assert (series["MR"].modality, series["MR"].plane, series["MR"].grid.shape) == ("MR", "sagittal", (48, 40, 20))
    np.testing.assert_array_equal(open_image(series["MR"].path).load(), make.voxels())
    with pytest.raises(ReadingError, match="mm apart"):
        open_dicom(series["ba"].path)


def test_files_of_a_series_are_those_of_its_slices_in_order(tmp_path: Path) -> None:
    files = make.write_series(tmp_path)
    write_scout(tmp_path, uid_of(tmp_path))
    assert series_files(tmp_path) == files
    assert series_files(files[3]) == [files[3]]
    assert series_files(tmp_path / uid_of(tmp_path)) == files


def test_nothing_there(tmp_path: Path) -> None:
    assert list_series(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_dicom(tmp_path / "1.2.3")
    with pytest.raises(ReadingError, match="no files"):
        open_dicom(tmp_path)


def test_what_is_dicom(tmp_path: Path) -> None:
    (file,) = make.write_series(tmp_path / "a", keep=[0])
    (bare,) = make.write_series(tmp_path / "b", keep=[0], preamble=False)
    assert is_dicom(file) and is_dicom(bare)
    junk = {"text": b"a text\n" * 99, "empty": b"", "zeros": bytes(999), "group 8": b"\x08\0\x05\0CS\x0a\0" * 50,
            "noise": b"\x08\0" + np.random.RandomState(0).bytes(5000)}  # fmt: skip
    for name, content in junk.items():
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)
    assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "absent")


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_compressed_pixels_cut_off_within_a_valid_file(syntax: str, part: float, tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), syntax=syntax)
    image = pydicom.dcmread(path)
    (data,) = pydicom.encaps.generate_pixel_data_frame(image.PixelData, 1)
    image.PixelData = encapsulate([data[: int(part * len(data)) // 2 * 2]])
    image.save_as(path)
    with pytest.raises(ReadingError, match=re.escape(str(path))):
        open_dicom(path).load()


def test_two_compressed_frames_where_the_header_says_one(tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), syntax=uid.JPEGLSLossless)
    image = pydicom.dcmread(path)
    (data,) = pydicom.encaps.generate_pixel_data_frame(image.PixelData, 1)
    image.PixelData = encapsulate([data, data])
    image.save_as(path)
    with pytest.raises(ReadingError, match="holds 2 frames"):
        open_dicom(path).load()


def test_a_frame_in_several_fragments(tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), syntax=uid.JPEG2000Lossless)
    image = pydicom.dcmread(path)
    (data,) = pydicom.encaps.generate_pixel_data_frame(image.PixelData, 1)
    image.PixelData = encapsulate([data], fragments_per_frame=5)
    image.save_as(path)
    np.testing.assert_array_equal(open_dicom(path).load(), make.xray_pixels())


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_codestream_of_another_size(syntax: str, tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), syntax=syntax)
    image = pydicom.dcmread(path)
    image.Rows = 41
    image.save_as(path)
    with pytest.raises(ReadingError, match="48×40 pixels of 1 values; its header says 48×41"):
        open_dicom(path).load()


def test_headers_that_declare_too_much_are_refused_before_decoding(tmp_path: Path) -> None:
    edit = setting(Rows=65535, Columns=65535)
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), edit=edit)
    with pytest.raises(ReadingError, match="bytes of pixels"):
        open_dicom(path)
    image = pydicom.dcmread(make.write_picture(tmp_path / "b.dcm", make.xray_pixels(), syntax=uid.RLELossless))
    image.Rows = image.Columns = 65535
    image.save_as(tmp_path / "b.dcm")
    with pytest.raises(ReadingError, match="MEDSAGA_MAX_IMAGE_GB"):
        open_dicom(tmp_path / "b.dcm")


def test_a_deflated_file_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), syntax=uid.DeflatedExplicitVRLittleEndian)
    head = path.read_bytes()[: 144 + pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength]
    deflate = zlib.compressobj(1, wbits=-15)
    body = b"".join(deflate.compress(bytes(2**24)) for _ in range(9)) + deflate.flush()
    path.write_bytes(head + body)
    with pytest.raises(ReadingError, match="more than 128 MiB when inflated"):
        open_dicom(path)


def test_a_decoder_that_has_crashed_is_started_again(tmp_path: Path) -> None:
    path = make.write_picture(tmp_path / "a.dcm", make.xray_pixels(), syntax=uid.JPEGLSLossless)
    for _ in range(2):
        np.testing.assert_array_equal(open_dicom(path).load(), make.xray_pixels())
        process = dicom_decoder._PROCESSES[os.getpid()]
        process.kill()
        process.wait()


def test_damaged_files_are_named_and_nothing_else_is_raised(tmp_path: Path) -> None:
    random = np.random.RandomState(5)
    syntaxes = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless,
                uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.DeflatedExplicitVRLittleEndian)  # fmt: skip
    originals = [make.write_picture(tmp_path / f"{n}.dcm", make.xray_pixels(), syntax=s).read_bytes()
                 for n, s in enumerate(syntaxes)]  # fmt: skip
    originals.append(make.write_enhanced(tmp_path / "e.dcm").read_bytes())
    path = tmp_path / "damaged.dcm"
    for n in range(400):
        data = bytearray(originals[n % len(originals)])
        if n % 3 == 0:
            data = data[: random.randint(1, len(data))]
        for place in random.randint(0, len(data), random.randint(1, 20)):
            data[place] = random.randint(256)
        path.write_bytes(bytes(data))
        error = None
        try:
            open_dicom(path).load()
        except ReadingError as e:
            error = str(e)
        assert error is None or str(path) in error


def test_what_a_decoder_that_has_lost_control_writes_is_not_run(tmp_path: Path) -> None:
    """It is data: a pickle that would make a file is no answer, and neither is a size that does not end."""
    mark = tmp_path / "mark"

    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (mark,)

    for written in (pickle.dumps(Code()), b'{"size": -1}\n', b'{"size": 9}\nshort', b"[]\n", b'{"size": "1"}\n'):
        with pytest.raises((EOFError, TypeError, ValueError)):
            dicom_decoder._receive(io.BytesIO(written))
    assert not mark.exists()


def test_a_folder_that_has_changed_is_listed_anew(tmp_path: Path) -> None:
    make.write_series(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert open_dicom(tmp_path).grid.shape == (48, 40, 20)
    last = list_series(tmp_path)[0].files[-1]
    content = last.read_bytes()
    last.unlink()
    assert open_dicom(tmp_path).grid.shape == (48, 40, 19)
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadingError, match=last.name):
        open_dicom(tmp_path).load()
    last.write_bytes(content)
    assert open_dicom(tmp_path).grid.shape == (48, 40, 20)
