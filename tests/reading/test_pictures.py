import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medsaga.reading.image import ReadingError
from medsaga.reading.pictures import open_picture

from .volume_inputs import PICTURE, PICTURE_INPUTS, PictureInput

_BY_NAME = {row.name: row for row in PICTURE_INPUTS}
_LABEL = np.zeros((4, 6), dtype=np.uint8)  # (rows, columns)
_LABEL[1, 2:4] = 1
_LABEL[3, 5] = 2


@pytest.mark.parametrize("row", PICTURE_INPUTS, ids=lambda row: row.name)
def test_every_picture_is_right_or_refused_by_name(tmp_path, row: PictureInput):
    path = row.make(tmp_path)
    if row.refused:
        with pytest.raises(ReadingError, match=row.refused) as error:
            open_picture(path, label=False).load()
        assert str(error.value).startswith(f"{path}: ")
        return
    image = open_picture(path, label=False)
    values = image.load()
    grid = image.grid
    assert grid.shape == (60, 40)
    assert (grid.placed, grid.unit, grid.spacing) == (False, "pixels", (1.0, 1.0))
    np.testing.assert_array_equal(grid.affine, np.diag([-1, -1, 1, 1]))
    assert values.shape == ((60, 40) if grid.channels == 1 else (60, 40, 3))
    assert values.dtype.isnative
    assert values.flags.writeable
    grey = values if grid.channels == 1 else values.mean(axis=-1)
    bright = np.argwhere(grey > (float(grey.min()) + float(grey.max())) / 2)
    np.testing.assert_allclose(bright.mean(axis=0), row.centre)
    assert len(bright) == row.area


@pytest.mark.parametrize(
    "name, channels", [("PNG", 1), ("PNG colour", 3), ("PNG LA", 1), ("PNG RGBA", 3), ("PNG 1 bit", 1)]
)
def test_channels(tmp_path, name, channels):
    assert open_picture(_BY_NAME[name].make(tmp_path), label=False).grid.channels == channels


def test_values_are_those_that_were_saved(tmp_path):
    for name in ("PNG", "BMP", "TIFF", "TIFF compressed", "PNG EXIF 6", "TIFF EXIF 3", "TIFF EXIF 6, compressed"):
        np.testing.assert_array_equal(open_picture(_BY_NAME[name].make(tmp_path), False).load(), PICTURE.T)
    np.testing.assert_array_equal(
        open_picture(_BY_NAME["PNG 1 bit"].make(tmp_path), False).load(), (PICTURE > 100).T * 255
    )
    np.testing.assert_array_equal(
        open_picture(_BY_NAME["TIFF float"].make(tmp_path), False).load(), PICTURE.T.astype(np.float32) / 255
    )


@pytest.mark.parametrize("order", "<>")
def test_16_bits_in_both_byte_orders(tmp_path, order):
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (6, 4), values.astype(f"{order}u2").tobytes())
    image.save(tmp_path / "a.tif")
    found = open_picture(tmp_path / "a.tif", label=False).load()
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, values.T)


@pytest.mark.parametrize("name", ["PNG EXIF 6", "JPEG EXIF 8", "JPEG EXIF 5", "TIFF EXIF 6, compressed"])
def test_labels_are_turned_as_their_images(tmp_path, name):
    path = _BY_NAME[name].make(tmp_path)
    label = open_picture(path, label=True)
    assert label.grid.shape == (60, 40)
    np.testing.assert_array_equal(label.load(), open_picture(path, label=False).load())


def _png(depth: int, colour: int, rows: bytes, extra: bytes = b"", width: int = 4) -> bytes:
    """PNG chunks by its specification; ``rows`` with the filter's byte before each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_few_bits_of_a_label_are_class_numbers(tmp_path):
    (tmp_path / "4.png").write_bytes(_png(4, 0, b"\0\x01\x23"))  # pixels 0, 1, 2, 3
    (tmp_path / "2.png").write_bytes(_png(2, 0, b"\0\x1b"))  # 00 01 10 11
    for bits, factor in ((4, 17), (2, 85)):
        path = tmp_path / f"{bits}.png"
        np.testing.assert_array_equal(open_picture(path, label=True).load()[:, 0], [0, 1, 2, 3])
        np.testing.assert_array_equal(open_picture(path, label=False).load()[:, 0], np.arange(4) * factor)


def test_16_bit_colours_are_read_as_8_with_a_notice(tmp_path):
    (tmp_path / "a.png").write_bytes(_png(16, 2, b"\0\x12\x34\x56\x78\x9a\xbc", width=1))
    image = open_picture(tmp_path / "a.png", label=False)
    assert image.notices[0].startswith(f"{tmp_path / 'a.png'}: it has 16 bits")
    np.testing.assert_array_equal(image.load(), [[[0x12, 0x56, 0x9A]]])


def _palette(colours):
    image = Image.frombytes("P", (6, 4), _LABEL.tobytes())
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_label_with_a_coloured_palette_is_its_indices(tmp_path, suffix):
    _palette([(0, 0, 0), (128, 0, 0), (128, 128, 128)]).save(tmp_path / f"a.{suffix}")  # as VOC's masks
    np.testing.assert_array_equal(open_picture(tmp_path / f"a.{suffix}", label=True).load(), _LABEL.T)
    colours = open_picture(tmp_path / f"a.{suffix}", label=False)
    assert colours.grid.channels == 3
    np.testing.assert_array_equal(colours.load()[2, 1], [128, 0, 0])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_label_with_a_grey_palette_is_its_greys(tmp_path, suffix):
    _palette([(0, 0, 0), (2, 2, 2), (1, 1, 1)]).save(tmp_path / f"a.{suffix}")
    truth = np.array([0, 2, 1], dtype=np.uint8)[_LABEL].T
    for label in (True, False):
        image = open_picture(tmp_path / f"a.{suffix}", label)
        assert image.grid.channels == 1
        np.testing.assert_array_equal(image.load(), truth)


def test_label_with_a_palette_that_does_not_tell_classes_apart_is_its_indices(tmp_path):
    _palette([(0, 0, 0)] * 3).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png", label=True).load(), _LABEL.T)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_label_of_1_bit_is_0_and_1(tmp_path, suffix):
    Image.fromarray(_LABEL > 0).save(tmp_path / f"a.{suffix}")
    values = open_picture(tmp_path / f"a.{suffix}", label=True).load()
    assert set(np.unique(values // values.max())) == {0, 1}
    np.testing.assert_array_equal(values > 0, _LABEL.T > 0)
    if suffix != "bmp":  # a BMP of 1 bit has a palette, black and white
        assert values.max() == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_label_in_grey_colours_is_one_channel(tmp_path, mode):
    Image.fromarray(_LABEL).convert(mode).save(tmp_path / "a.png")
    label = open_picture(tmp_path / "a.png", label=True)
    assert label.grid.channels == 1
    np.testing.assert_array_equal(label.load(), _LABEL.T)


def test_label_in_colours_is_refused(tmp_path):
    Image.fromarray(np.dstack([_LABEL, _LABEL * 0, _LABEL])).save(tmp_path / "a.png")
    with pytest.raises(ReadingError, match="a.png: the label is in colour; expected class numbers. Save it"):
        open_picture(tmp_path / "a.png", label=True).load()


def test_opaque_alpha_is_dropped_without_words(tmp_path, caplog):
    colours = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(np.dstack([colours, np.full((4, 6), 255, np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png", label=False).load(), colours.swapaxes(0, 1))
    assert not caplog.records


def test_half_transparent_is_half_black_and_told(tmp_path, caplog):
    Image.new("RGBA", (3, 2), (200, 100, 50, 51)).save(tmp_path / "a.png")  # 51 / 255 = 1 / 5
    np.testing.assert_array_equal(
        open_picture(tmp_path / "a.png", label=False).load(), np.full((3, 2, 3), (40, 20, 10))
    )
    assert f"{tmp_path / 'a.png'}: 100.0 % of its pixels are transparent" in caplog.text


def test_jpeg_cut_anywhere_in_its_pixels_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)).save(stream, "JPEG")
    raw = stream.getvalue()
    for share in (0.2, 0.5, 0.9, 0.98):
        (tmp_path / "a.jpg").write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(ReadingError, match="a.jpg: .*truncated"):
            open_picture(tmp_path / "a.jpg", label=False).load()


def test_every_flipped_byte_of_png_pixels_is_noticed(tmp_path):
    path = _BY_NAME["PNG"].make(tmp_path)
    raw = path.read_bytes()
    start = raw.index(b"IDAT") + 4
    for offset in range(start, len(raw) - 20, 97):
        damaged = bytearray(raw)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ReadingError, match="scan.png: "):
            open_picture(path, label=False).load()


def test_previews_behind_a_jpeg_are_no_pages(tmp_path):
    image = Image.fromarray(PICTURE)
    image.convert("RGB").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.resize((6, 4)).convert("RGB")]
    )
    assert open_picture(tmp_path / "a.jpg", label=False).load().shape == (60, 40, 3)


def test_white_is_zero_in_16_bits_is_refused(tmp_path):
    Image.fromarray(PICTURE.astype(np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as picture:
        zero = picture.tag_v2[262] == 0
    if not zero:
        pytest.skip("this Pillow writes it as black is zero")
    with pytest.raises(ReadingError, match="0 is white"):
        open_picture(tmp_path / "a.tif", label=False)


def test_exif_behind_the_pixels_turns_or_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    raw = _BY_NAME["PNG"].make(tmp_path).read_bytes()
    (tmp_path / "a.png").write_bytes(raw[:-12] + chunk + raw[-12:])
    with pytest.raises(ReadingError, match="a.png: its orientation"):
        open_picture(tmp_path / "a.png", label=False).load()


def test_no_such_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        open_picture(tmp_path / "gone.png", label=False)
