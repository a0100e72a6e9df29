"""Volumes and pictures whose truth is known, as scanners, converters and paint programs write them, and broken ones.

The volume has 48×40×20 voxels of 1×1×2 mm and a bright block of 10×8×4 voxels (320, 0.64 ml) with its centre at RAS
(15.5, 22.5, 115); the picture 60×40 pixels and a bright block of 20×10 with its centre at column 19.5, row 9.5. Files
are written by nibabel, pynrrd, ITK and PIL.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import itk
import nibabel as nib
import nrrd
import numpy as np
from PIL import Image

__all__ = ["AFFINE", "INPUTS", "PICTURE", "PICTURE_INPUTS", "VALUES", "Input", "PictureInput", "patch", "truncate"]

CENTRE = (15.5, 22.5, 115.0)
AFFINE = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 96], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 50, (48, 40, 20)).astype(np.int16)
VALUES[11:21, 19:27, 8:12] = 1000

PICTURE = np.random.default_rng(0).integers(10, 30, (40, 60)).astype(np.uint8)  # (rows, columns)
PICTURE[5:15, 10:30] = 220


@dataclass(frozen=True)
class Input:
    """A volume.

    Attributes:
        name: of the row.
        make: writes it into a folder, returns what is to be read.
        centre: of the block, in mm, RAS.
        ml: its volume.
        refused: what the error says, as a regular expression; None where it is read.
        channels: values in each voxel, each as the one of the others. More than one is read, and refused where one
            sequence is expected.
    """

    name: str
    make: Callable[[Path], Path]
    centre: tuple[float, float, float] = CENTRE
    ml: float = 0.64
    refused: str | None = None
    channels: int = 1


@dataclass(frozen=True)
class PictureInput:
    """A picture; as :class:`Input`, with the block's centre (column, row) and its area in pixels."""

    name: str
    make: Callable[[Path], Path]
    centre: tuple[float, float] = (19.5, 9.5)
    area: int = 200
    refused: str | None = None


def patch(path: Path, offset: int, layout: str, *numbers: float) -> Path:
    """Write numbers, as ``struct`` lays them out, into a file."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(layout, raw, offset, *numbers)
    path.write_bytes(raw)
    return path


def truncate(path: Path, share: float) -> Path:
    """Keep the first part of a file."""
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    return path


def _about_centre(matrix: np.ndarray) -> np.ndarray:
    """AFFINE turned or sheared about the centre of the block, which stays where it is."""
    affine = AFFINE.copy()
    affine[:3, :3] = matrix @ AFFINE[:3, :3]
    affine[:3, 3] = np.array(CENTRE) + matrix @ (AFFINE[:3, 3] - CENTRE)
    return affine


def _turn(*degrees: float) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


OBLIQUE = _about_centre(_turn(20, -15, 33))


# --- NIfTI


def _nifti(
    values: np.ndarray = VALUES,
    affine: np.ndarray | None = AFFINE,
    suffix: str = ".nii.gz",
    kind: type = nib.Nifti1Image,
    change: Callable[[nib.Nifti1Image], None] | None = None,
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = kind(values, affine)
        if change:
            change(image)
        nib.save(image, folder / f"scan{suffix}")
        return folder / f"scan{suffix}"

    return make


def _oriented(codes: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        to = nib.orientations.axcodes2ornt(codes)
        image = nib.Nifti1Image(VALUES, AFFINE)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), to))
        nib.save(turned, folder / "scan.nii.gz")
        return folder / "scan.nii.gz"

    return make


def _patched(offset: int, layout: str, *numbers: float, base: Callable | None = None) -> Callable[[Path], Path]:
    return lambda folder: patch((base or _nifti(suffix=".nii"))(folder), offset, layout, *numbers)


def _big_endian(folder: Path) -> Path:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(VALUES.astype(">i2"), AFFINE, header), folder / "scan.nii")
    return folder / "scan.nii"


def _scaled(image: nib.Nifti1Image) -> None:
    image.header.set_slope_inter(0.5, -1024)  # nibabel stores the integers as they are


def _qform_only(image: nib.Nifti1Image) -> None:
    image.set_qform(OBLIQUE, 1)
    image.set_sform(None, 0)


def _two_forms(image: nib.Nifti1Image) -> None:
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE + np.array([[0, 0, 0, 5.0], *np.zeros((3, 4))]), 1)


def _no_form(image: nib.Nifti1Image) -> None:
    image.set_sform(None, 0)
    image.set_qform(None, 0)


def _units(code: str) -> Callable[[nib.Nifti1Image], None]:
    return lambda image: image.header.set_xyzt_units(code)


def _in_metres(affine: np.ndarray) -> np.ndarray:
    return np.diag([0.001, 0.001, 0.001, 1]) @ affine


def _padded() -> np.ndarray:
    """A field of view that is a cylinder, −2000 outside it."""
    values = VALUES - 1000
    i, j = np.mgrid[:48, :40]
    values[(i - 23.5) ** 2 + (j - 19.5) ** 2 > 21**2] = -2000
    return values


def _wrong_checksum(folder: Path) -> Path:
    path = _nifti()(folder)
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 0xFF
    path.write_bytes(raw)
    return path


def _liar(folder: Path) -> Path:
    """A file of 60 kB that declares 2000×2000×700 voxels."""
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 60))
    header.set_data_dtype(np.uint8)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header.set_sform(AFFINE, 1)
    (folder / "scan.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(10**7)))
    return folder / "scan.nii.gz"


def _plain_as_gz(folder: Path) -> Path:
    path = _nifti(suffix=".nii")(folder)
    return path.rename(folder / "scan.nii.gz")


# --- NRRD


def _nrrd(
    values: np.ndarray = VALUES, name: str = "scan.nrrd", lps: bool = True, **header: object
) -> Callable[[Path], Path]:
    fields = {"encoding": "gzip", **{key.replace("_", " "): value for key, value in header.items()}}
    if "space" in fields and "space directions" not in fields:
        flips = np.diag([-1, -1, 1]) if lps else np.eye(3)
        fields["space directions"] = (flips @ AFFINE[:3, :3]).T
        fields["space origin"] = flips @ AFFINE[:3, 3]

    def make(folder: Path) -> Path:
        nrrd.write(str(folder / name), values, fields, detached_header=name.endswith(".nhdr"))
        return folder / name

    return make


def _nrrd_las(folder: Path) -> Path:
    flip = np.diag([-1, 1, 1])
    return _nrrd(
        space="left-anterior-superior", space_directions=flip @ AFFINE[:3, :3], space_origin=flip @ AFFINE[:3, 3]
    )(folder)


def _nrrd_text(space: str) -> Callable[[Path], Path]:
    """Written by hand, as pynrrd does not write it."""

    def make(folder: Path) -> Path:
        head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 48 40 20\nencoding: raw\nendian: little\n" + space
        (folder / "scan.nrrd").write_bytes(head.encode() + b"\n" + VALUES.tobytes(order="F"))
        return folder / "scan.nrrd"

    return make


def _layers(count: int) -> Callable[[Path], Path]:
    flips = np.diag([-1, -1, 1])
    rows = [[np.nan] * 3, *(flips @ AFFINE[:3, :3]).T]
    return _nrrd(
        np.stack([(VALUES > 500).astype(np.uint8) * 255] * count),
        "scan.seg.nrrd",
        kinds=["list", "domain", "domain", "domain"],
        space="left-posterior-superior",
        space_directions=rows,
        space_origin=flips @ AFFINE[:3, 3],
    )


def _elsewhere(folder: Path) -> Path:
    path = _nrrd(name="scan.nhdr", space="left-posterior-superior")(folder)
    data = next(file for file in folder.iterdir() if file != path)
    (folder / "other").mkdir()
    data.rename(folder / "other" / data.name)
    path.write_text(path.read_text().replace(data.name, f"other/{data.name}"))
    return path


# --- MetaImage


def _itk(
    name: str, compression: bool = True, affine: np.ndarray = AFFINE, values: np.ndarray = VALUES
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = itk.image_from_array(np.ascontiguousarray(values.T))
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
        image.SetOrigin(lps[:3, 3].tolist())
        itk.imwrite(image, str(folder / name), compression=compression)
        return folder / name

    return make


def _itk_two_axes(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = itk.image_from_array(np.ascontiguousarray(VALUES[..., 9].T))
        image.SetSpacing([0.5, 2])
        image.SetOrigin([10, 20])
        itk.imwrite(image, str(folder / name), compression=True)
        return folder / name

    return make


def _itk_vectors(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = itk.image_from_array(np.ascontiguousarray(np.stack([VALUES.T] * 2, -1)), is_vector=True)
        _place(image)
        itk.imwrite(image, str(folder / name), compression=True)
        return folder / name

    return make


def _itk_4d(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = itk.image_from_array(np.ascontiguousarray(np.stack([VALUES.T] * 2)))
        _place(image, 1)
        itk.imwrite(image, str(folder / name), compression=True)
        return folder / name

    return make


def _place(image: itk.Image, more: int = 0) -> None:
    """As AFFINE; further axes have spacing 1."""
    image.SetSpacing([1, 1, 2] + [1] * more)
    image.SetDirection(itk.matrix_from_array(np.diag([-1.0, -1, 1] + [1] * more)))
    image.SetOrigin([0, 0, 96] + [0] * more)


def _replaced(make: Callable[[Path], Path], old: bytes, new: bytes) -> Callable[[Path], Path]:
    def replaced(folder: Path) -> Path:
        path = make(folder)
        raw = path.read_bytes()
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))
        return path

    return replaced


def _without_data(folder: Path) -> Path:
    path = _itk("scan.mhd")(folder)
    (folder / "scan.zraw").unlink()
    return path


def _truncated(make: Callable[[Path], Path], share: float = 0.6) -> Callable[[Path], Path]:
    return lambda folder: truncate(make(folder), share)


def _truncated_raw(folder: Path) -> Path:
    path = _itk("scan.mhd", compression=False)(folder)
    truncate(folder / "scan.raw", 0.9)
    return path


_SAGITTAL, _CORONAL = AFFINE.copy(), AFFINE.copy()
_SAGITTAL[0, 3], _CORONAL[1, 3] = 15, 22
_AXIAL = AFFINE.copy()
_AXIAL[2, 3] = 114
_SHEAR = np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]])
_RGB = np.zeros(VALUES.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
_NO_INVERSE = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 96], [0, 0, 0, 1]])
_LPS = "left-posterior-superior"

INPUTS: Sequence[Input] = (
    *(Input(f"NIfTI {codes}", _oriented(codes)) for codes in ("RAS", "LPS", "LAS", "RSP", "PIR", "ASL", "SPL")),
    Input("NIfTI oblique", _nifti(affine=OBLIQUE)),
    Input("NIfTI sheared", _nifti(affine=_about_centre(_SHEAR))),
    Input("NIfTI .nii", _nifti(suffix=".nii")),
    Input("NIfTI-2", _nifti(kind=nib.Nifti2Image)),
    Input("NIfTI big-endian", _big_endian),
    Input("NIfTI unsigned", _nifti(VALUES.astype(np.uint16))),
    Input("NIfTI float64", _nifti(VALUES.astype(np.float64))),
    Input("NIfTI scaled", _nifti(change=_scaled)),
    Input("NIfTI slope NaN", _patched(112, "<2f", np.nan, 0)),
    Input("NIfTI qform only, oblique", _nifti(change=_qform_only)),
    Input("NIfTI sform and qform apart", _nifti(change=_two_forms)),
    Input("NIfTI without a form", _nifti(change=_no_form), centre=(8, 3, 0)),
    Input("NIfTI in metres", _nifti(affine=_in_metres(AFFINE), change=_units("meter"))),
    Input("NIfTI x-y-z-1", _nifti(VALUES[..., None])),
    Input("NIfTI sagittal slice", _nifti(VALUES[15:16], _SAGITTAL), (15, 22.5, 115), 0.064),
    Input("NIfTI coronal slice", _nifti(VALUES[:, 22:23], _CORONAL), (15.5, 22, 115), 0.08),
    Input("NIfTI axial slice", _nifti(VALUES[..., 9:10], _AXIAL), (15.5, 22.5, 114), 0.16),
    Input("NIfTI two axes", _nifti(VALUES[..., 9], _AXIAL), (15.5, 22.5, 114), 0.16),
    Input("NIfTI padding −2000", _nifti(_padded())),
    Input("NIfTI wrong checksum", _wrong_checksum, refused="damaged"),
    Input("NIfTI truncated", _truncated(_nifti()), refused="truncated"),
    Input("NIfTI truncated .nii", _truncated(_nifti(suffix=".nii")), refused="truncated"),
    Input("NIfTI header only", _truncated(_nifti(suffix=".nii"), 0.001), refused="truncated|begin"),
    Input("NIfTI not compressed", _plain_as_gz, refused="damaged"),
    Input("NIfTI liar", _liar, refused="announces 240000000 bytes"),
    Input("NIfTI 4-D", _nifti(np.stack([VALUES] * 3, -1)), refused="4-D image with 3 volumes", channels=3),
    Input("NIfTI vectors", _nifti(np.stack([VALUES] * 2, -1)[:, :, :, None]), refused="2 volumes", channels=2),
    Input(
        "NIfTI 4-D, one slice",
        _nifti(np.stack([VALUES[..., 9:10]] * 3, -1), _AXIAL),
        (15.5, 22.5, 114),
        0.16,
        "3 volumes",
        3,
    ),
    Input("NIfTI 5-D", _nifti(np.stack([np.stack([VALUES] * 3, -1)] * 2, -1)), refused="may follow the three axes"),
    Input("NIfTI RGB", _nifti(_RGB), refused="colours"),
    Input("NIfTI complex", _nifti(VALUES.astype(np.complex64)), refused="complex"),
    Input("NIfTI float128", _patched(70, "<2h", 1536, 128), refused="float128|cannot be read|announces"),
    Input("NIfTI spacing 0", _patched(88, "<f", 0, base=_nifti(suffix=".nii", change=_qform_only)), refused="pixdim"),
    Input("NIfTI affine singular", _patched(280, "<12f", *_NO_INVERSE[:3].ravel()), refused="no inverse"),
    Input("NIfTI affine NaN", _patched(280, "<f", np.nan), refused="no inverse"),
    Input("NIfTI unknown unit", _patched(123, "B", 5), refused="xyzt_units"),
    Input("NIfTI empty axis", _patched(42, "<h", 0), refused="every axis"),
    Input("NIfTI 1e9 voxels", _patched(42, "<3h", 2000, 2000, 700), refused="GB"),
    Input("NRRD LPS", _nrrd(space=_LPS)),
    Input("NRRD RAS", _nrrd(space="right-anterior-superior", lps=False)),
    Input("NRRD RAS, short name", _nrrd(space="RAS", lps=False)),
    Input("NRRD LAS", _nrrd_las),
    Input("NRRD bzip2", _nrrd(space=_LPS, encoding="bzip2")),
    Input("NRRD raw, big-endian", _nrrd(VALUES.astype(">i2"), space=_LPS, encoding="raw", endian="big")),
    Input("NRRD detached", _nrrd(name="scan.nhdr", space=_LPS)),
    Input("NRRD spacings only", _nrrd(spacings=[1, 1, 2]), centre=(-15.5, -22.5, 19)),
    Input(
        "NRRD no space",
        _nrrd_text("space dimension: 3\nspace directions: (-1,0,0) (0,-1,0) (0,0,2)\nspace origin: (0,0,96)\n"),
    ),
    Input("NRRD by ITK, oblique", _itk("scan.nrrd", affine=OBLIQUE)),
    Input("NRRD two axes", _itk_two_axes("scan.nrrd"), (-17.75, -65, 0), 0.08),
    Input("NRRD one layer", _layers(1)),
    Input("NRRD two layers", _layers(2), refused="2 layers"),
    Input("NRRD scanner-xyz", _nrrd(space="scanner-xyz"), refused="scanner-xyz"),
    Input("NRRD in cm", _nrrd(space=_LPS, space_units=["cm"] * 3), refused="'cm'"),
    Input(
        "NRRD vectors",
        _nrrd(
            np.stack([VALUES] * 3),
            kinds=["vector", "domain", "domain", "domain"],
            space=_LPS,
            space_directions=np.vstack([np.full((1, 3), np.nan), np.diag([-1.0, -1, 2])]),
            space_origin=AFFINE[:3, 3],
        ),
        refused="4-D image with 3 volumes",
        channels=3,
    ),
    Input(
        "NRRD list behind",
        _nrrd(np.stack([VALUES] * 2, -1), kinds=["domain", "domain", "domain", "list"], spacings=[1, 1, 2, np.nan]),
        centre=(-15.5, -22.5, 19),
        refused="4-D image with 2 volumes",
        channels=2,
    ),
    Input(
        "NRRD complex",
        _nrrd(np.stack([VALUES] * 2), kinds=["complex", "domain", "domain", "domain"]),
        refused="complex",
    ),
    Input("NRRD truncated", _truncated(_nrrd(space=_LPS)), refused="truncated"),
    Input("NRRD truncated raw", _truncated(_nrrd(space=_LPS, encoding="raw")), refused="truncated"),
    Input("NRRD data elsewhere", _elsewhere, refused="same folder"),
    Input("NRRD by axis mins", _nrrd_text("spacings: 1 1 2\naxis mins: 1 2 3\n"), refused="axis mins"),
    Input("MetaImage", _itk("scan.mha", compression=False)),
    Input("MetaImage compressed", _itk("scan.mha")),
    Input("MetaImage oblique", _itk("scan.mha", affine=OBLIQUE)),
    Input("MetaImage .mhd", _itk("scan.mhd", compression=False)),
    Input("MetaImage .mhd compressed", _itk("scan.mhd")),
    Input("MetaImage float", _itk("scan.mha", values=VALUES.astype(np.float32))),
    Input("MetaImage two axes", _itk_two_axes("scan.mha"), (-17.75, -65, 0), 0.08),
    Input("MetaImage vectors", _itk_vectors("scan.mha"), refused="4-D image with 2 volumes", channels=2),
    Input("MetaImage 4-D", _itk_4d("scan.mha"), refused="4-D image with 2 volumes", channels=2),
    Input("MetaImage truncated", _truncated(_itk("scan.mha", compression=False)), refused="truncated"),
    Input("MetaImage compressed truncated", _truncated(_itk("scan.mha"), 0.8), refused="too early"),
    Input("MetaImage raw truncated", _truncated_raw, refused="truncated"),
    Input("MetaImage data missing", _without_data, refused="same folder"),
    Input(
        "MetaImage data elsewhere",
        _replaced(_itk("scan.mhd"), b"scan.zraw", b"../scan.zraw"),
        refused="same folder",
    ),
    Input(
        "MetaImage called compressed",
        _replaced(_itk("scan.mha", compression=False), b"CompressedData = False", b"CompressedData = True"),
        refused="damaged",
    ),
    Input("MetaImage spacing 0", _replaced(_itk("scan.mha"), b"= 1 1 2", b"= 1 0 2"), refused="no inverse"),
    Input("MetaImage in cm", _replaced(_itk("scan.mha"), b"NDims", b"DistanceUnits = cm\nNDims"), refused="'cm'"),
    Input("NIfTI called .mha", lambda folder: _nifti()(folder).rename(folder / "scan.mha"), refused="no MetaImage"),
)


# --- pictures


def _picture(name: str, picture: np.ndarray | Image.Image = PICTURE, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(folder / name, **options)
        return folder / name

    return make


def _exif(name: str, orientation: int, stored: np.ndarray, **options: object) -> Callable[[Path], Path]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _picture(name, np.ascontiguousarray(stored), exif=exif, **options)


def _with_alpha() -> np.ndarray:
    """White everywhere; the block is what is not transparent."""
    alpha = np.where(PICTURE > 100, 255, 0).astype(np.uint8)
    return np.dstack([np.full_like(PICTURE, 255)] * 3 + [alpha])


def _palette() -> Image.Image:
    image = Image.fromarray((PICTURE > 100).astype(np.uint8), mode=None).convert("L")
    image.putpalette([0, 0, 0, 128, 200, 128], "RGB")
    return image


def _bomb(folder: Path) -> Path:
    """A PNG of 30000×20000 pixels, 600 MB, in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 20000, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (folder / "scan.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return folder / "scan.png"


def _bad_crc(folder: Path) -> Path:
    path = _picture("scan.png")(folder)
    raw = bytearray(path.read_bytes())
    end = raw.rindex(b"IEND")
    raw[end - 8] ^= 0xFF  # of the last IDAT's checksum
    path.write_bytes(raw)
    return path


def _text(folder: Path) -> Path:
    (folder / "scan.png").write_text("no picture\n" * 100)
    return folder / "scan.png"


def _dicom(folder: Path) -> Path:
    (folder / "scan.png").write_bytes(bytes(128) + b"DICM" + bytes(100))
    return folder / "scan.png"


_COLOUR = np.dstack([PICTURE, PICTURE // 2, PICTURE])
_WIDE = PICTURE.astype(np.uint16) * 257

PICTURE_INPUTS: Sequence[PictureInput] = (
    PictureInput("PNG", _picture("scan.png")),
    PictureInput("JPEG", _picture("scan.jpg", quality=95)),
    PictureInput("BMP", _picture("scan.bmp")),
    PictureInput("TIFF", _picture("scan.tif")),
    PictureInput("TIFF compressed", _picture("scan.tiff", compression="tiff_lzw")),
    PictureInput("PNG colour", _picture("scan.png", _COLOUR)),
    PictureInput("JPEG colour", _picture("scan.jpeg", _COLOUR, quality=95)),
    PictureInput("JPEG CMYK", _picture("scan.jpg", Image.fromarray(_COLOUR).convert("CMYK"), quality=95)),
    PictureInput("JPEG with DPI", _picture("scan.jpg", quality=95, dpi=(150, 72))),
    PictureInput("JPEG called .png", lambda folder: _picture("scan.jpg")(folder).rename(folder / "scan.png")),
    PictureInput("JPEG EXIF 2", _exif("scan.jpg", 2, PICTURE[:, ::-1])),
    PictureInput("JPEG EXIF 3", _exif("scan.jpg", 3, np.rot90(PICTURE, 2))),
    PictureInput("JPEG EXIF 5", _exif("scan.jpg", 5, PICTURE.T)),
    PictureInput("JPEG EXIF 6", _exif("scan.jpg", 6, np.rot90(PICTURE))),
    PictureInput("JPEG EXIF 8", _exif("scan.jpg", 8, np.rot90(PICTURE, -1))),
    PictureInput("PNG EXIF 6", _exif("scan.png", 6, np.rot90(PICTURE))),
    PictureInput("TIFF EXIF 3", _exif("scan.tif", 3, np.rot90(PICTURE, 2))),
    PictureInput("TIFF EXIF 6", _exif("scan.tif", 6, np.rot90(PICTURE)), refused="orientation tag"),
    PictureInput("TIFF EXIF 6, compressed", _exif("scan.tif", 6, np.rot90(PICTURE), compression="tiff_lzw")),
    PictureInput("PNG RGBA", _picture("scan.png", _with_alpha())),
    PictureInput("PNG LA", _picture("scan.png", _with_alpha()[..., 2:])),
    PictureInput("PNG palette", _picture("scan.png", _palette())),
    PictureInput("BMP palette", _picture("scan.bmp", _palette())),
    PictureInput("TIFF palette", _picture("scan.tif", _palette())),
    PictureInput("PNG 1 bit", _picture("scan.png", PICTURE > 100)),
    PictureInput("TIFF 1 bit", _picture("scan.tif", PICTURE > 100)),
    PictureInput("PNG 16 bits", _picture("scan.png", _WIDE)),
    PictureInput("TIFF 16 bits", _picture("scan.tif", _WIDE)),
    PictureInput("TIFF float", _picture("scan.tif", PICTURE.astype(np.float32) / 255)),
    PictureInput(
        "TIFF pages",
        _picture("scan.tif", save_all=True, append_images=[Image.fromarray(PICTURE)]),
        refused="2 pages",
    ),
    PictureInput(
        "PNG animated",
        _picture("scan.png", save_all=True, append_images=[Image.fromarray(PICTURE[::-1].copy())]),
        refused="2 pages",
    ),
    PictureInput("PNG truncated", _truncated(_picture("scan.png")), refused="only in part"),
    PictureInput("JPEG truncated", _truncated(_picture("scan.jpg", quality=95), 0.4), refused="only in part"),
    PictureInput("BMP truncated", _truncated(_picture("scan.bmp")), refused="only in part"),
    PictureInput("TIFF truncated", _truncated(_picture("scan.tif"), 0.9), refused="only in part|damaged"),
    PictureInput("PNG bad checksum", _bad_crc, refused="only in part"),
    PictureInput("PNG of 600 MB", _bomb, refused="600000000|30000 × 20000"),
    PictureInput("text called .png", _text, refused="not a PNG, JPEG, BMP or TIFF"),
    PictureInput("DICOM called .png", _dicom, refused="suffix .dcm"),
)
