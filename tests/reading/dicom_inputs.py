"""DICOM inputs as a table: how each is made, and what has to be read from it, or why it has to be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset

from . import dicom_phantoms as make

Slices = Callable[[int], float]
SCOUT_AXES = make.CORONAL


@dataclass(frozen=True)
class Input:
    """One row.

    Attributes:
        name: of the row.
        make: writes the input into an empty folder and returns the path that is to be read.
        centre: RAS, mm, of the block that is brighter than 0.9 of the range; None for pictures.
        ml: volume of the block.
        pixels: for pictures: number of bright pixels, whose centre is at column 23.5, row 15.5.
        refused: regular expression that the refusal's text matches; None where the input has to be read.
    """

    name: str
    make: Callable[[Path], Path]
    centre: tuple[float, float, float] | None = make.CENTRE
    ml: float | None = make.ML
    pixels: int | None = None
    refused: str | None = None


INPUTS: list[Input] = []


def series(name: str, refused: str | None = None, then: Callable[[Path], object] | None = None, **options) -> None:
    """A row of a folder with a series; ``then`` adds or damages files."""

    def write(folder: Path) -> Path:
        make.write_series(folder, **options)
        if then:
            then(folder)
        return folder

    INPUTS.append(Input(name, write, refused=refused))


def other(name: str, refused: str | None = None, pixels: int | None = None) -> Callable:
    """A row by a function of its own."""

    def add(function: Callable[[Path], Path]) -> Callable[[Path], Path]:
        if pixels:
            INPUTS.append(Input(name, function, None, None, pixels, refused))
        else:
            INPUTS.append(Input(name, function, refused=refused))
        return function

    return add


def setting(only: range | None = None, **elements: object) -> make.Edit:
    """An edit that sets elements, of some slices only; ``None`` deletes one."""

    def edit(image: Dataset, k: int) -> None:
        for keyword, value in elements.items() if only is None or k in only else ():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)

    return edit


def write_scout(
    folder: Path, series_uid: str = "", image_type: str = "LOCALIZER", axes: np.ndarray = SCOUT_AXES
) -> None:
    """One slice in another plane and of another size, brighter than all else."""
    values = np.full((64, 64, 20), 3000, np.int16)
    edit = setting(ImageType=["ORIGINAL", "PRIMARY", image_type])
    make.write_series(folder, axes=axes, keep=[0], values=values, uid=series_uid, edit=edit, prefix="scout")


def uid_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.glob("IM*"))).SeriesInstanceUID)


def file_of(folder: Path, k: int) -> Path:
    """File of the slice with index ``k`` among those that are there."""
    files = {p: float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in folder.glob("IM*")}
    return sorted(files, key=lambda p: files[p])[k]


# --- good series, in all their forms ----------------------------------------------------------------------------------
series("CT axial")
series("CT sagittal", axes=make.SAGITTAL)
series("CT coronal", axes=make.CORONAL)
series("CT oblique", axes=make.turned((12, -9, 20)))
series("CT at 45 degrees", axes=make.turned((45, 0, 0)))
series("CT, feet first: columns and slices run the other way", axes=np.diag([-1.0, 1.0, -1.0]))
series("MR axial", modality="MR")
series("MR sagittal", modality="MR", axes=make.SAGITTAL)
series("CT signed", dtype=np.int16, rescale=lambda k: (1, 0))
series("CT with a rescale a slice", rescale=lambda k: (0.5 + 0.125 * (k % 3), -1024 - k))
series("PET-like: slope a slice, nothing else", rescale=lambda k: (0.03125 * (1 + k), 0))
series("signed and unsigned slices in one series", edit=lambda image, k: setattr(image, "PixelRepresentation", k % 2))
series("direction cosines jitter by 1e-6", jitter=1e-6)
series("direction cosines jitter by 1e-4", jitter=1e-4)
series("positions rounded to 0.1 mm", heights=lambda k: 2.0 * k + (0.1, 0, -0.1)[k % 3])
series("SliceThickness changes midway", edit=setting(range(10), SliceThickness="5"))
series("SliceThickness absent", edit=setting(SliceThickness=None))
series("SpacingBetweenSlices wrong", edit=setting(SpacingBetweenSlices="9"))
series("SeriesDate changes midway", edit=setting(range(10), SeriesDate="20260103", StudyDate="20260103"))
series("InstanceNumber all 1", edit=setting(InstanceNumber=1))
series("first slice missing", keep=range(1, 20))
series("last slice missing", keep=range(19))
series("names without suffix", suffix="")
series("without preamble", preamble=False)
for syntax in (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
):
    series(f"CT, {syntax.name}", syntax=syntax)
series("MR sagittal, RLE", modality="MR", axes=make.SAGITTAL, syntax=uid.RLELossless)


# --- padding ----------------------------------------------------------------------------------------------------------
def padded(value: int, **elements: object) -> make.Edit:
    """Ten rows at the edge hold a stored value, declared as padding by ``elements``."""

    def edit(image: Dataset, k: int) -> None:
        rows = np.frombuffer(image.PixelData, np.uint16).reshape(40, 48).copy()
        rows[30:] = value
        image.PixelData = rows.tobytes()
        for keyword, (vr, number) in elements.items():  # type: ignore[misc]
            image.add_new(keyword, vr, number)

    return edit


series("padding 63536, declared as -2000", edit=padded(63536, PixelPaddingValue=("SS", -2000)))
series("padding 63536, declared as 63536", edit=padded(63536, PixelPaddingValue=("US", 63536)))
series("padding -2000 of signed pixels", dtype=np.int16, rescale=lambda k: (1, 0),
       edit=padded(63536, PixelPaddingValue=("SS", -2000)))  # fmt: skip
series("padding by a range", edit=padded(63000, PixelPaddingValue=("US", 63536), PixelPaddingRangeLimit=("US", 62000)))


# --- series that make no regular volume -------------------------------------------------------------------------------
def tilt(degrees: float) -> Callable[[int], tuple[float, float]]:
    return lambda k: (0.0, 2.0 * k * float(np.tan(np.deg2rad(degrees))))


series("gantry tilt 20 degrees", r"tilted by 20\.0 degrees.*dcm2niix", shift=tilt(20))
series("gantry tilt 2 degrees", r"tilted by 2\.0 degrees", shift=tilt(2))
series("gantry tilt -12.5 degrees, MR coronal", r"tilted by 12\.5 degrees", shift=tilt(-12.5), modality="MR",
       axes=make.CORONAL)  # fmt: skip
series("slices of a tilt too small to matter", shift=tilt(0.2))
series("one slice shifted sideways", r"slice 9 of 20 .* lies 2\.\d+ mm beside", shift=lambda k: (3.0 * (k == 8), 0.0))
series("3 slices missing in the middle", r"2\.00 to 8\.00 mm apart.*after slice 9 of 17.*3 may be missing",
       keep=[*range(9), *range(12, 20)])  # fmt: skip
series("3 slices missing, MR coronal", "3 may be missing", modality="MR", axes=make.CORONAL,
       keep=[*range(9), *range(12, 20)])  # fmt: skip
series("first slice missing, MR sagittal", modality="MR", axes=make.SAGITTAL, keep=range(1, 20))
series(
    "every second slice missing after the tenth", "spacing changes|may be missing", keep=[*range(10), *range(11, 20, 2)]
)
series("a mosaic", "a mosaic", modality="MR", edit=setting(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
series("three echoes", "3 at each of 20 positions", modality="MR",
       then=lambda folder: [(folder / f"{n}{p.name}").write_bytes(p.read_bytes())
                            for p in sorted(folder.glob("IM*")) for n in "ab"])  # fmt: skip
series("two time points that lie 0.5 mm apart", "more than one image|mm apart",
       then=lambda folder: make.write_series(folder, uid=uid_of(folder), prefix="again", heights=lambda k: 2 * k + 0.5,
                                            frame=pydicom.dcmread(file_of(folder, 0)).FrameOfReferenceUID))  # fmt: skip
series("1 slice missing, sagittal", "1 may be missing", keep=[*range(9), *range(10, 20)], axes=make.SAGITTAL)
series("second slice missing", "1 may be missing", keep=[0, *range(2, 20)])
series("second-last slice missing", "1 may be missing", keep=[*range(18), 19])
series("slices 1 mm, then 3 mm apart", r"1\.00 to 3\.00 mm apart.*after slice 11 .*spacing changes",
       heights=lambda k: min(k, 10) + 3.0 * max(k - 10, 0))  # fmt: skip
series("two sizes of slices: 512 and 256", "has 40×40 pixels, unlike the 48×40",
       edit=lambda image, k: k or make.set_pixels(image, np.zeros((40, 40), np.uint16)))  # fmt: skip
series("two time points", r"2 at each of 20 positions.*time points",
       then=lambda folder: make.write_series(folder, uid=uid_of(folder), prefix="again",
                                            frame=pydicom.dcmread(file_of(folder, 0)).FrameOfReferenceUID))  # fmt: skip
series("a file twice", "more than one image at a position",
       then=lambda folder: (folder / "copy.dcm").write_bytes(file_of(folder, 3).read_bytes()))  # fmt: skip
series("all slices at one position", "20 at each of 1 positions", heights=lambda k: 0.0)
series("two volumes in one series", r"several volumes: 20 axial slices.*8 coronal slices",
       then=lambda folder: make.write_series(folder, uid=uid_of(folder), keep=range(8), axes=make.CORONAL,
                                            prefix="other"))  # fmt: skip
series(
    "a slice without ImagePositionPatient", "no ImagePositionPatient", edit=setting(range(1), ImagePositionPatient=None)
)
series("no slice has a position", "no ImagePositionPatient", edit=setting(ImagePositionPatient=None))
series("a slice without RescaleIntercept", "1 of 20 slices .*no RescaleIntercept",
       edit=setting(range(3, 4), RescaleIntercept=None))  # fmt: skip
series("PixelSpacing 0", "PixelSpacing is", edit=setting(range(3, 4), PixelSpacing=["0", "1"]))
series("PixelSpacing absent", "no PixelSpacing", edit=setting(PixelSpacing=None))
series("rows and columns not at right angles", "right angles",
       edit=setting(ImageOrientationPatient=[1, 0, 0, 0.2, 1, 0]))  # fmt: skip
series("RescaleSlope 0", "RescaleSlope is 0", edit=setting(RescaleSlope="0"))
series("no Rows", "has no Rows", edit=setting(range(5, 6), Rows=None))
series("float pixels", "FloatPixelData; only whole numbers", edit=lambda image, k: (
    image.add_new("FloatPixelData", "OF", b"\0" * 7680), image.pop("PixelData")))  # fmt: skip
series("slices in colour", "in colour", edit=lambda image, k: make.set_pixels(
    image, np.zeros((40, 48, 3), np.uint8), "RGB"))  # fmt: skip


# --- what lies beside a series ----------------------------------------------------------------------------------------
def beside(folder: Path) -> None:
    """All that may lie beside slices and is none."""
    (folder / "readme.txt").write_text("Slices of a phantom")
    (folder / "LOCKFILE").write_text("")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    make.write_other(folder / "DICOMDIR", uid.MediaStorageDirectoryStorage, "")
    write_seg(folder / "seg.dcm")
    for name, sop_class in {
        "sr": uid.BasicTextSRStorage,
        "ko": uid.KeyObjectSelectionDocumentStorage,
        "pr": uid.GrayscaleSoftcopyPresentationStateStorage,
        "rtstruct": uid.RTStructureSetStorage,
        "pdf": uid.EncapsulatedPDFStorage,
    }.items():
        make.write_other(folder / f"{name}.dcm", sop_class, name.upper())


def write_seg(path: Path) -> Path:
    def edit(image: Dataset, k: int) -> None:
        make.set_pixels(image, np.ones((20, 40, 48), np.uint8))
        image.NumberOfFrames = 20

    return make.write_other(path, uid.SegmentationStorage, "SEG", edit)


series("DICOMDIR, SEG, SR, KO, PR, RTSTRUCT, PDF, text beside it", then=beside)
series("a scout of the same series", then=lambda folder: write_scout(folder, uid_of(folder)))
series("a scout of the same series that does not say so", then=lambda f: write_scout(f, uid_of(f), "AXIAL"))
series("a scout of another series", then=write_scout)
series("a scout of another series that does not say so", then=lambda folder: write_scout(folder, "", "AXIAL"))
series("a sagittal scout beside coronal slices", axes=make.CORONAL,
       then=lambda folder: write_scout(folder, uid_of(folder), axes=make.SAGITTAL))  # fmt: skip
series("two series in a folder", r"holds 2 series; give one of them, such as .*CT, axial.*MR, coronal",
       then=lambda folder: make.write_series(folder, modality="MR", axes=make.CORONAL, prefix="MR"))  # fmt: skip
series("a slice that is cut off", r"IM0004\.dcm: holds \d+ bytes", then=lambda f: make.cut(f / "IM0004.dcm", 0.7))
series("a slice cut off in its header", r"IM0004\.dcm: ", then=lambda folder: make.cut(folder / "IM0004.dcm", 0.1))
series("an empty slice", r"IM0004\.dcm: is no DICOM", then=lambda folder: make.cut(folder / "IM0004.dcm", 0))
series("a slice of zeros", r"IM0004: is no DICOM", suffix="",
       then=lambda folder: (folder / "IM0004").write_bytes(bytes(5000)))  # fmt: skip
series("a JPEG 2000 slice that is cut off", r"IM0004\.dcm: ", syntax=uid.JPEG2000Lossless,
       then=lambda folder: make.cut(folder / "IM0004.dcm", 0.9))  # fmt: skip


@other("one of two series by its UID")
def one_of_two(folder: Path) -> Path:
    make.write_series(folder, keep=range(8), values=make.voxels() * 0, modality="MR", prefix="other")
    make.write_series(folder)
    return folder / uid_of(folder)


@other("a UID that is not there", "no such series")
def wrong_uid(folder: Path) -> Path:
    make.write_series(folder)
    return folder / "1.2.3.4"


@other("patient/study/series", "DICOM files are in its sub-folders, give one: study/series")
def nested(folder: Path) -> Path:
    make.write_series(folder / "study" / "series")
    return folder


@other("a folder with a SEG and a report only", "no DICOM image .*Segmentation")
def only_seg(folder: Path) -> Path:
    write_seg(folder / "seg.dcm")
    return folder


@other("a SEG as image", "not an image: Segmentation")
def seg(folder: Path) -> Path:
    return write_seg(folder / "seg.dcm")


@other("a DICOMDIR as image", "DICOMDIR, which only lists")
def dicomdir(folder: Path) -> Path:
    beside(folder)
    return folder / "DICOMDIR"


@other("a single slice", pixels=64)
def single(folder: Path) -> Path:
    make.write_series(folder)
    return file_of(folder, 7)


# --- enhanced multi-frame ---------------------------------------------------------------------------------------------
def enhanced(name: str, refused: str | None = None, **options) -> None:
    INPUTS.append(Input(name, lambda folder: make.write_enhanced(folder / "a.dcm", **options), refused=refused))


enhanced("enhanced CT")
enhanced("enhanced MR, sagittal", modality="MR", axes=make.SAGITTAL)
enhanced("enhanced, a rescale for all frames", shared_rescale=True, rescale=lambda k: (2, -1024))
enhanced("enhanced, a rescale a frame", rescale=lambda k: (0.5 + 0.125 * (k % 3), -1024 - k))
enhanced("enhanced, frames interleaved", frames=[*range(0, 20, 2), *range(1, 20, 2)])
enhanced("enhanced, frames from the other end", frames=range(19, -1, -1))
enhanced("enhanced, oblique, RLE", axes=make.turned((12, -9, 20)), syntax=uid.RLELossless)
enhanced("enhanced, JPEG 2000", frames=[*range(1, 20), 0], syntax=uid.JPEG2000Lossless)
enhanced("enhanced, 3 frames missing", "3 may be missing", frames=[*range(9), *range(12, 20)])
enhanced("enhanced, two time points", "2 at each of 20 positions", frames=[*range(20), *range(20)])
enhanced("enhanced, too few frames described", "NumberOfFrames is 20",
         edit=lambda image, k: image.PerFrameFunctionalGroupsSequence.pop())  # fmt: skip
enhanced("enhanced, a frame without a position", "1 of 20 frames",
         edit=lambda image, k: image.PerFrameFunctionalGroupsSequence[4].pop("PlanePositionSequence"))  # fmt: skip
enhanced("enhanced, more frames declared than held", "holds 38400 bytes",
         edit=lambda image, k: setattr(image, "PixelData", image.PixelData[:38400]))  # fmt: skip


def tilted(image: Dataset, k: int) -> None:
    for n, group in enumerate(image.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient[1] += 0.5 * n


enhanced("enhanced, gantry tilt", r"tilted by 14\.0 degrees", edit=tilted)


@other("a JPEG 2000 enhanced file that is cut off", "a.dcm: ")
def enhanced_cut(folder: Path) -> Path:
    make.cut(make.write_enhanced(folder / "a.dcm", syntax=uid.JPEG2000Lossless), 0.8)
    return folder / "a.dcm"


@other("two enhanced files in a series", "2 multi-frame images .* give one file")
def two_enhanced(folder: Path) -> Path:
    for name in "ab":
        edit = setting(SeriesInstanceUID="1.2.3")
        make.write_enhanced(folder / f"{name}.dcm", edit=edit)
    return folder


@other("an enhanced file in a folder")
def enhanced_folder(folder: Path) -> Path:
    make.write_enhanced(folder / "a.dcm")
    beside(folder)
    return folder


# --- X-rays and pictures ----------------------------------------------------------------------------------------------
def xray(name: str, refused: str | None = None, inverted: bool = False, **options) -> None:
    def write(folder: Path) -> Path:
        pixels = 4095 - make.xray_pixels() if inverted else make.xray_pixels()
        kind = "MONOCHROME1" if inverted else "MONOCHROME2"
        return make.write_picture(folder / "a.dcm", pixels, kind=kind, bits=12, **options)

    INPUTS.append(Input(name, write, None, None, 64, refused))


xray("X-ray, MONOCHROME2")
xray("X-ray, MONOCHROME1", inverted=True)
xray("X-ray, MONOCHROME1, JPEG lossless", inverted=True, syntax=uid.JPEGLosslessSV1)
xray("X-ray with PixelSpacing", spacing="PixelSpacing")
xray("X-ray without spacing", spacing="")
xray("X-ray, cut off", "bytes of pixels", edit=lambda image, k: setattr(image, "Rows", 400))
xray("X-ray, 32 bits", "BitsAllocated is 32", edit=setting(BitsAllocated=32))
xray("X-ray, 1 bit", "BitsAllocated is 1;", edit=setting(BitsAllocated=1))


@other("an X-ray in a folder", pixels=64)
def xray_folder(folder: Path) -> Path:
    make.write_picture(folder / "a.dcm", make.xray_pixels())
    return folder


@other("two X-rays in a series", r"holds 2 images; give one of them, such as .*a\.dcm", pixels=64)
def two_xrays(folder: Path) -> Path:
    for name in "ab":
        make.write_picture(folder / f"{name}.dcm", make.xray_pixels(), uid="1.2.3")
    return folder


@other("ultrasound film", "20 frames without positions")
def film(folder: Path) -> Path:
    edit = setting(NumberOfFrames=20, PixelData=b"\1" * 48 * 40 * 2 * 20)
    return make.write_picture(folder / "a.dcm", make.xray_pixels(), modality="US", edit=edit)
