"""Damages small good files in seeded ways and reads each: ``python -m tests.reading.malformed FOLDER FORMATS COUNT``.

Prints JSON: how many were read, how many refused, and what went otherwise. ``FOLDER/current.txt`` names the file that
is being read, for when a C library takes the process with it.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import re
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import gdcm
import itk
import nibabel as nib
import nrrd
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from medsaga.reading.image import ReadingError
from medsaga.reading.open import open_image

SECONDS_EACH = 20
MOST_MEMORY = 10**9  # bytes more than before the first file

_RNG = np.random.default_rng(0)
_VOLUME = _RNG.integers(-100, 900, (12, 10, 6)).astype(np.int16)
_PICTURE = _RNG.integers(0, 255, (24, 30, 3)).astype(np.uint8)
_NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 1024, 32767, 65535, 2**31 - 1, -(2**31), 2**40, 2**63, 10**30)
_FLOATS = (0.0, -1.0, 1e-38, 1e38, 3.4e38, float("nan"), float("inf"), -float("inf"), 352.5, 1e9)
_WORDS = (
    *map(str, _NUMBERS),
    *map(str, _FLOATS),
    "",
    "abc",
    "(1,2",
    "none",
    "True",
    "../x",
    "/",
    ".",
    "\x00",
    "%03d 1 9 1",
)
# of NIfTI-1: offset and format of dim, datatype, bitpix, pixdim, vox_offset, slope, units, codes, quaternion, sform
_NIFTI_FIELDS = [
    *((40 + 2 * i, "h") for i in range(8)),
    *((70, "h"), (72, "h"), (0, "i"), (344, "i"), (123, "B"), (252, "h"), (254, "h"), (348, "i")),
    *((offset, "f") for offset in range(76, 124 - 4, 4)),
    *((offset, "f") for offset in range(256, 328, 4)),
]


def _saved(image: Image.Image, suffix: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def _dicom(jpeg: bool = False) -> bytes:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(entropy_srcs=["malformed"])
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    image.SeriesInstanceUID = image.StudyInstanceUID = image.FrameOfReferenceUID = image.SOPInstanceUID
    image.Modality, image.PatientID, image.InstanceNumber = "CT", "P", 1
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 24, 30, 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8 if jpeg else 16
    image.HighBit, image.PixelRepresentation = image.BitsStored - 1, 0
    image.PixelSpacing, image.SliceThickness = [1, 1], 2
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    grey = _PICTURE[..., 0]
    image.PixelData = (
        encapsulate([_saved(Image.fromarray(grey), "JPEG")]) if jpeg else (grey.astype(np.uint16) * 9).tobytes()
    )
    image["PixelData"].VR = "OB" if jpeg else "OW"
    image.is_little_endian, image.is_implicit_VR = True, False
    stream = io.BytesIO()
    image.save_as(stream, write_like_original=False)
    return stream.getvalue()


def _transcoded(folder: Path, syntax: int) -> bytes:
    source, target = str(folder / "plain.dcm"), str(folder / "transcoded.dcm")
    Path(source).write_bytes(_dicom())
    reader = gdcm.ImageReader()
    reader.SetFileName(source)
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(target)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return Path(target).read_bytes()


def good_files(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Names and contents by kind; the suffix of the name tells the format."""
    affine = np.array([[0, -1.0, 0, 4], [1, 0, 0, 5], [0, 0, 2, 6], [0, 0, 0, 1]])
    nifti = nib.Nifti1Image(_VOLUME, affine)
    nifti.header.set_slope_inter(2, -5)
    image = itk.image_from_array(_VOLUME)
    files = {"nii": (".nii", nifti.to_bytes()), "nii.gz": (".nii.gz", gzip.compress(nifti.to_bytes()))}
    for encoding in ("raw", "gzip", "bzip2"):
        space = {"space": "left-posterior-superior", "space directions": affine[:3, :3], "space origin": affine[:3, 3]}
        nrrd.write(str(folder / "good.nrrd"), _VOLUME, {"encoding": encoding, "kinds": ["domain"] * 3, **space})
        files[f"nrrd {encoding}"] = (".nrrd", (folder / "good.nrrd").read_bytes())
    for compression in (False, True):
        itk.imwrite(image, str(folder / "good.mha"), compression=compression)
        files[f"mha {compression}"] = (".mha", (folder / "good.mha").read_bytes())
    itk.imwrite(image, str(folder / "good.mhd"), compression=False)
    files["mhd"] = (".mhd", (folder / "good.mhd").read_bytes())
    colour, grey = Image.fromarray(_PICTURE), Image.fromarray(_PICTURE[..., 0])
    exif = Image.Exif()
    exif[274] = 6
    files |= {
        "png": (".png", _saved(colour, "PNG", exif=exif)),
        "png palette": (".png", _saved(colour.quantize(16), "PNG")),
        "png 16": (".png", _saved(Image.fromarray(_PICTURE[..., 0].astype(np.uint16) * 200), "PNG")),
        "png alpha": (".png", _saved(colour.convert("RGBA"), "PNG")),
        "jpg": (".jpg", _saved(colour, "JPEG", exif=exif)),
        "jpg progressive": (".jpg", _saved(grey, "JPEG", progressive=True)),
        "bmp": (".bmp", _saved(colour, "BMP")),
        "bmp palette": (".bmp", _saved(colour.quantize(16), "BMP")),
        "tif": (".tif", _saved(grey, "TIFF")),
        "tif lzw": (".tif", _saved(colour, "TIFF", compression="tiff_lzw", exif=exif)),
        "tif deflate": (".tif", _saved(grey, "TIFF", compression="tiff_adobe_deflate")),
        "tif jpeg": (".tif", _saved(colour, "TIFF", compression="jpeg")),
        "dcm": (".dcm", _dicom()),
        "dcm jpeg": (".dcm", _dicom(jpeg=True)),
        "dcm lossless": (".dcm", _transcoded(folder, gdcm.TransferSyntax.JPEGLosslessProcess14_1)),
        "dcm ls": (".dcm", _transcoded(folder, gdcm.TransferSyntax.JPEGLSLossless)),
        "dcm 2000": (".dcm", _transcoded(folder, gdcm.TransferSyntax.JPEG2000Lossless)),
        "dcm rle": (".dcm", _transcoded(folder, gdcm.TransferSyntax.RLELossless)),
    }
    return files


def damaged(kind: str, raw: bytes, rng: np.random.Generator) -> bytes:
    """A file with something wrong, mostly in its header."""
    if kind == "nii.gz" and rng.random() < 0.5:  # what is inside, with a right checksum
        return gzip.compress(damaged("nii", gzip.decompress(raw), rng))
    ways: list[Callable[[bytearray, np.random.Generator], bytes]] = [_flip, _flip, _cut, _remove, _double, _fill]
    if kind == "nii":
        ways += [_nifti_field] * 6
    elif kind.startswith(("nrrd", "mh")):
        ways += [_text_field] * 6
    elif kind.startswith("png"):
        ways += [_png_header] * 3
    elif kind.startswith("dcm "):
        ways += [_pixels] * 8
    else:
        ways += [_number] * 4
    return bytes(ways[rng.integers(len(ways))](bytearray(raw), rng))


def _place(raw: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(min(len(raw), 512) if rng.random() < 0.6 else len(raw)))


def _flip(raw: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 12)):
        raw[_place(raw, rng)] = rng.integers(256)
    return raw


def _cut(raw: bytearray, rng: np.random.Generator) -> bytes:
    return raw[: _place(raw, rng)]


def _remove(raw: bytearray, rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    return raw[:start] + raw[start + rng.integers(1, 200) :]


def _double(raw: bytearray, rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    end = start + int(rng.integers(1, 200))
    return raw[:end] + raw[start:end] * int(rng.choice([1, 2, 500])) + raw[end:]


def _fill(raw: bytearray, rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    length = min(int(rng.integers(1, 64)), len(raw) - start)
    raw[start : start + length] = bytes([rng.choice([0, 255])]) * length
    return raw


def _number(raw: bytearray, rng: np.random.Generator) -> bytes:
    """An extreme number somewhere in the header, in one of the byte orders."""
    width, layout = [(2, "H"), (4, "I"), (8, "Q")][rng.integers(3)]
    start = min(_place(raw, rng), len(raw) - width)
    value = _NUMBERS[rng.integers(len(_NUMBERS))] % 2 ** (8 * width)
    struct.pack_into("<>"[rng.integers(2)] + layout, raw, start, value)
    return raw


def _nifti_field(raw: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 4)):
        offset, layout = _NIFTI_FIELDS[rng.integers(len(_NIFTI_FIELDS))]
        if layout == "f":
            value = _FLOATS[rng.integers(len(_FLOATS))]
            raw[offset : offset + 4] = np.float32(min(value, 3.4e38)).tobytes()
        else:
            width = struct.calcsize(layout)
            value = int(_NUMBERS[rng.integers(len(_NUMBERS))]) % 2 ** (8 * width)
            raw[offset : offset + width] = value.to_bytes(width, "little")
    return raw


def _text_field(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Another word in the header, or a line that is gone or there twice."""
    end = max(raw.find(b"\n\n"), raw.find(b"LOCAL\n"))
    end = len(raw) if end < 0 else end
    head, rest = bytes(raw[:end]), bytes(raw[end:])
    lines = head.split(b"\n")
    line = int(rng.integers(len(lines)))
    way = rng.random()
    if way < 0.15:
        del lines[line]
    elif way < 0.25:
        lines.insert(line, lines[line])
    else:
        words = list(re.finditer(rb"[^\s:=(),]+", lines[line]))
        if words:
            word = words[rng.integers(len(words))]
            new = _WORDS[rng.integers(len(_WORDS))].encode()
            lines[line] = lines[line][: word.start()] + new + lines[line][word.end() :]
    return b"\n".join(lines) + rest


def _png_header(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Width, height, depth or type of colour, with a right checksum."""
    field = rng.integers(4)
    if field < 2:
        struct.pack_into(">I", raw, 16 + 4 * field, int(_NUMBERS[rng.integers(len(_NUMBERS))]) % 2**32)
    else:
        raw[22 + field] = rng.integers(20)
    struct.pack_into(">I", raw, 29, zlib.crc32(raw[12:29]))
    return raw


def _pixels(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Bytes of the last item of compressed pixels, mostly of its header."""
    start = raw.rindex(b"\xfe\xff\x00\xe0") + 8
    for _ in range(rng.integers(1, 12)):
        raw[rng.integers(start, len(raw) if rng.random() < 0.4 else min(len(raw), start + 100))] = rng.integers(256)
    return raw


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path, formats: list[str], count: int) -> None:
    files = {kind: file for kind, file in good_files(folder).items() if kind.split()[0] in formats}
    for kind, (suffix, raw) in files.items():
        path = folder / f"good{suffix}"
        path.write_bytes(raw)
        assert open_image(path, label=False).load().size, kind
    result: dict = {"read": 0, "refused": 0, "wrong": []}
    before = first = _peak()
    for index in range(count):
        kind = list(files)[index % len(files)]
        suffix, raw = files[kind]
        path = folder / f"{index:04}_{kind.replace(' ', '_').replace('.', '_')}{suffix}"
        path.write_bytes(damaged(kind, raw, np.random.default_rng(index)))
        (folder / "current.txt").write_text(path.name)
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
        try:
            image = open_image(path, label=index % 2 == 1)
            values = image.load()
            shape = values.shape if image.grid.channels == 1 else values.shape[:-1]
            if shape != image.grid.shape or not all(str(path) in notice for notice in image.notices):
                result["wrong"].append(f"{path.name}: shape {values.shape} of {image.grid}, {image.notices}")
            result["read"] += 1
            path.unlink()
        except (ReadingError, FileNotFoundError) as err:
            if str(path) not in str(err):
                result["wrong"].append(f"{path.name}: not named in {err}")
            result["refused"] += 1
            path.unlink()
        except BaseException as err:
            result["wrong"].append(f"{path.name}: {type(err).__name__}: {err}")
        faulthandler.cancel_dump_traceback_later()
        if (peak := _peak()) > before + MOST_MEMORY:
            result["wrong"].append(f"{path.name}: {(peak - before) / 1e9:.1f} GB")
            before = peak
    result["peak"] = _peak() - first
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]))
