"""Label maps as DICOM segmentation objects (SEG) and back, on the voxels of the series that they belong to.

Writing needs highdicom (``pip install medsaga[label]``), reading does not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SegmentationStorage,
    generate_uid,
)

from medsaga import __version__
from medsaga.reading import Grid

__all__ = ["label_key", "read_seg", "segment_names", "write_seg"]

logger = logging.getLogger(__name__)

# SNOMED CT codes as in DICOM PS3.16 (CID 7140, 7151, 7152, 7155 and 244): structure, and what part or side of it
_HIPPOCAMPUS, _LUNG = ("5366008", "Hippocampus"), ("39607008", "Lung")
_KIDNEY, _ADRENAL_GLAND = ("64033007", "Kidney"), ("23451007", "Adrenal gland")
_RIGHT, _LEFT = ("24028007", "Right"), ("7771000", "Left")
_CODES: dict[str, tuple[tuple[str, str], tuple[str, str] | None]] = {
    "anterior": (_HIPPOCAMPUS, ("255549009", "Anterior")),
    "posterior": (_HIPPOCAMPUS, ("255551008", "Posterior")),
    "spleen": (("78961009", "Spleen"), None),
    "liver": (("10200004", "Liver"), None),
    "heart": (("80891009", "Heart"), None),
    "lung": (_LUNG, None),
    "right lung": (_LUNG, _RIGHT),
    "left lung": (_LUNG, _LEFT),
    "right kidney": (_KIDNEY, _RIGHT),
    "left kidney": (_KIDNEY, _LEFT),
    "gallbladder": (("28231008", "Gallbladder"), None),
    "esophagus": (("32849002", "Esophagus"), None),
    "stomach": (("69695003", "Stomach"), None),
    "aorta": (("15825003", "Aorta"), None),
    "postcava": (("64131007", "Inferior Vena Cava"), None),
    "pancreas": (("15776009", "Pancreas"), None),
    "right adrenal gland": (_ADRENAL_GLAND, _RIGHT),
    "left adrenal gland": (_ADRENAL_GLAND, _LEFT),
    "duodenum": (("38848004", "Duodenum"), None),
    "bladder": (("89837001", "Bladder"), None),
}
# of 3D Slicer's anatomy colours
_COLOURS = {
    "spleen": (157, 108, 162),
    "liver": (221, 130, 101),
    "heart": (206, 110, 84),
    "right lung": (197, 165, 145),
    "left lung": (197, 165, 145),
    "right kidney": (185, 102, 83),
    "left kidney": (185, 102, 83),
    "gallbladder": (139, 150, 98),
    "esophagus": (211, 171, 143),
    "stomach": (216, 132, 105),
    "aorta": (224, 97, 76),
    "pancreas": (249, 180, 111),
    "right adrenal gland": (249, 186, 150),
    "left adrenal gland": (249, 186, 150),
    "duodenum": (255, 253, 229),
}
# for names without a colour of their own; well apart from each other and from greys
_PALETTE = [
    (230, 60, 60),
    (60, 200, 90),
    (70, 130, 240),
    (240, 200, 50),
    (200, 80, 220),
    (60, 210, 210),
    (245, 140, 40),
]

_AI = Code("123110", "DCM", "Artificial Intelligence")
_COPIED = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge")
_COPIED += ("StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName")


def label_key(name: str) -> str:
    """Form in which names of labels are compared: clients change case and underscores."""
    return " ".join(name.replace("_", " ").lower().split())


def segment_names(seg: pydicom.Dataset) -> dict[int, str]:
    """Label by segment number."""
    return {int(s.SegmentNumber): str(s.get("SegmentLabel", "")) for s in seg.get("SegmentSequence", [])}


def write_seg(
    label: np.ndarray,
    grid: Grid,
    names: Mapping[int, str],
    files: Sequence[Path],
    path: Path,
    creator: str = "medsaga",
    automatic: bool = False,
) -> None:
    """Write one segment for each value that occurs in a label map.

    Args:
        label: class numbers of the shape of ``grid``.
        grid: of the series as it is read, see :func:`~medsaga.reading.open_image`; 2-D for a projection (X-ray).
        names: segment's label by value.
        files: the instances of the series, in the order of its slices.
        path: of the file to write.
        creator: what made the segmentation, at most 64 characters.
        automatic: whether no person has taken part in it.

    Raises:
        ValueError: no voxel is segmented, a name cannot be a segment's label, or an instance lacks a UID.
        RuntimeError: highdicom is not installed.
    """
    values = [int(v) for v in np.unique(label) if v]
    if not values:
        raise ValueError("no voxel is segmented, and a DICOM segmentation needs at least one")
    try:
        import highdicom
    except ImportError as e:
        raise RuntimeError("Writing DICOM segmentations needs highdicom: pip install medsaga[label]") from e
    for name in (names[v] for v in values):
        if not name.strip() or re.search(r"[\\\x00-\x1f]", name):
            raise ValueError(
                f"{name!r} cannot be the label of a segment: it is empty, or has a backslash or line break"
            )
    numbers = np.zeros(values[-1] + 1, np.uint16)  # of segments: without gaps
    numbers[values] = range(1, len(values) + 1)
    headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        if not all(header.get(name) for header in headers):
            raise ValueError(f"the series has an instance without {name}, so no segmentation can refer to it")
    stand_ins = {generate_uid(): source for source in _sources(headers, grid)}
    seg = highdicom.seg.Segmentation(
        source_images=[_stand_in(headers[0], grid, number, uid) for number, uid in enumerate(stand_ins)],
        pixel_array=numbers[label].T,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(n, v, names[v], creator, automatic) for n, v in enumerate(values, start=1)],
        series_instance_uid=generate_uid(),
        series_number=300,
        series_description=f"Segmentation: {', '.join(names[v] for v in values)}"[:64],
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="medsaga",
        manufacturer_model_name="medsaga",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Segmentation made with medsaga",
        content_creator_name="medsaga^",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    seg.SpecificCharacterSet = "ISO_IR 192"
    for name in _COPIED:
        if name in headers[0]:
            seg[name] = headers[0][name]  # as it is, valid or not
    if "FrameOfReferenceUID" not in seg:
        seg.PatientOrientation = ""  # must be present, though empty, if the plane has no orientation
    _point_to(seg, headers, stand_ins)
    # to tell which of two segmentations is the newer one
    now = datetime.now()
    seg.ContentDate = seg.SeriesDate = now.strftime("%Y%m%d")
    seg.ContentTime = seg.SeriesTime = now.strftime("%H%M%S.%f")
    seg.save_as(path, write_like_original=False)


def read_seg(seg: pydicom.Dataset, grid: Grid, values: Mapping[str, int]) -> np.ndarray:
    """The label map that a segmentation describes.

    Args:
        seg: BINARY or FRACTIONAL (then from one half on); any number and order of segments.
        grid: of the segmented series; 2-D for a projection.
        values: of the label map, by segment label. Segments of other names are left out.

    Returns:
        uint8 of the grid's shape.

    Raises:
        ValueError: when it is no such segmentation, or not on the series' grid.
    """
    if seg.SOPClassUID != SegmentationStorage:
        raise ValueError(f"it is a {seg.SOPClassUID.name}; it must be a Segmentation Storage")
    by_key = {label_key(name): value for name, value in values.items()}
    names = segment_names(seg)
    shared = seg.SharedFunctionalGroupsSequence[0]
    frames = np.atleast_3d(seg.pixel_array.T).T  # frame, row, column; pydicom leaves the first out for a single one
    half = 0.5 * float(seg.get("MaximumFractionalValue", 1))
    label = np.zeros(grid.shape, np.uint8)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence):

        def group(name: str, groups: pydicom.Dataset = groups) -> pydicom.Dataset | None:
            found = groups.get(name) or shared.get(name)
            return found[0] if found else None

        number = int(group("SegmentIdentificationSequence").ReferencedSegmentNumber)
        value = by_key.get(label_key(names.get(number, "")))
        if value is None:
            continue
        row, column = np.nonzero(frame >= half)
        index = _indices(column, row, group, grid)
        before = label[tuple(index.T)]
        if np.any((before != 0) & (before != value)):
            logger.warning("Segments overlap; segment %s is kept where they do", names[number])
        label[tuple(index.T)] = value
    return label


def _indices(column: np.ndarray, row: np.ndarray, group: Any, grid: Grid) -> np.ndarray:
    """Voxel indices (N×dimension) in ``grid`` of a frame's pixels."""
    plane, orientation = group("PlanePositionSequence"), group("PlaneOrientationSequence")
    if len(grid.shape) == 2 or plane is None:  # a projection's segmentation has the same pixels as the image
        index = np.stack([column, row], 1)
        if len(grid.shape) == 3:
            index = np.pad(index, ((0, 0), (0, 1)))
    else:
        directions = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(v) for v in group("PixelMeasuresSequence").PixelSpacing)
        points = np.array(plane.ImagePositionPatient, float) + np.outer(column * right, directions[0])
        points += np.outer(row * down, directions[1])
        points *= [-1, -1, 1]  # DICOM's LPS to RAS
        exact = (points - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
        index = np.rint(exact).astype(int)
        if index.size and np.abs(exact - index).max() > 0.1:
            raise ValueError("its pixels do not lie on the series' voxels")
    if index.size and (index.min() < 0 or np.any(index.max(0) >= grid.shape)):
        raise ValueError("it reaches beyond the series")
    return index


def _sources(headers: Sequence[pydicom.Dataset], grid: Grid) -> list[tuple[pydicom.Dataset, int]]:
    """By slice: the header of its file, and its frame there, from 1; 0 where a file is one slice."""
    if "PerFrameFunctionalGroupsSequence" not in headers[0]:
        return [(header, 0) for header in headers]
    frames = [(header, n) for header in headers for n in range(1, len(header.PerFrameFunctionalGroupsSequence) + 1)]
    places = np.array([_place_of(header, n) for header, n in frames])
    nearest = [np.linalg.norm(places - _place(grid, k), axis=1).argmin() for k in range(grid.shape[2])]
    return [frames[n] for n in nearest]


def _place_of(header: pydicom.Dataset, number: int) -> np.ndarray:
    """Position of a frame's first pixel in LPS, mm; frames are counted from 1."""
    group = header.PerFrameFunctionalGroupsSequence[number - 1]
    group = group if "PlanePositionSequence" in group else header.SharedFunctionalGroupsSequence[0]
    return np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)


def _place(grid: Grid, number: int) -> np.ndarray:
    """Position of a slice's first pixel in LPS, mm."""
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine @ [0, 0, number, 1])[:3]


def _stand_in(header: pydicom.Dataset, grid: Grid, number: int, uid: str) -> pydicom.Dataset:
    """A slice in the form that highdicom accepts: it refuses headers without attributes that hospitals leave out."""
    image = pydicom.Dataset()
    image.StudyInstanceUID, image.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
    image.SOPClassUID, image.SOPInstanceUID = DigitalXRayImageStorageForPresentation, uid
    image.PatientName = image.PatientID = image.PatientBirthDate = image.PatientSex = ""
    image.StudyDate = image.StudyTime = image.StudyID = image.AccessionNumber = ""
    image.Columns, image.Rows = grid.shape[:2]
    if len(grid.shape) == 3:
        columns = np.diag([-1.0, -1.0, 1.0]) @ grid.affine[:3, :2] / grid.spacing[:2]
        image.SOPClassUID = MRImageStorage
        frame = generate_uid(entropy_srcs=[header.SeriesInstanceUID])  # the same for all slices
        image.FrameOfReferenceUID = header.get("FrameOfReferenceUID") or frame
        image.ImagePositionPatient = _decimals(_place(grid, number))
        image.ImageOrientationPatient = _decimals(columns.T.ravel())
        image.PixelSpacing = _decimals(grid.spacing[1::-1])  # between rows, between columns
        (image.SliceThickness,) = (image.SpacingBetweenSlices,) = _decimals(grid.spacing[2:])
    return image


def _decimals(values: Sequence[float]) -> list[str]:
    """DICOM's decimal strings: at most 16 characters."""
    return [str(pydicom.valuerep.DSfloat(float(v), auto_format=True)) for v in values]


def _point_to(
    seg: pydicom.Dataset, headers: Sequence[pydicom.Dataset], stand_ins: Mapping[str, tuple[pydicom.Dataset, int]]
) -> None:
    """Let a segmentation refer to the images themselves in the place of their stand-ins."""
    del seg.SourceImageSequence
    items = [pydicom.Dataset() for _ in headers]
    for item, header in zip(items, headers):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = items
    for groups in seg.PerFrameFunctionalGroupsSequence:
        item = groups.DerivationImageSequence[0].SourceImageSequence[0]
        if item.ReferencedSOPInstanceUID not in stand_ins:
            continue  # newer releases of highdicom share an item among the segments of a slice
        header, number = stand_ins[item.ReferencedSOPInstanceUID]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if number:
            item.ReferencedFrameNumber = number


def _segment(number: int, value: int, name: str, creator: str, automatic: bool) -> pydicom.Dataset:
    """highdicom's description of a segment."""
    import highdicom
    from skimage.color import rgb2lab

    key = label_key(name)
    # a name without a known code gets one of this project's own scheme, whose code is the name
    private = ((key.replace(" ", "_")[:16], name), None)
    (code, meaning), modifier = _CODES.get(key, private)
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=Code("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=Code(code, "SCT" if key in _CODES else "99MEDSAGA", meaning[:64]),
        algorithm_type="AUTOMATIC" if automatic else "SEMIAUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(creator[:64], _AI, __version__),
    )
    segment.SegmentDescription = name[:64]
    if modifier:
        concept = highdicom.sr.CodedConcept(modifier[0], "SCT", modifier[1])
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [concept]
    colour = _COLOURS.get(key, _PALETTE[(value - 1) % len(_PALETTE)])
    lab = rgb2lab(np.divide(colour, 255))
    segment.RecommendedDisplayCIELabValue = list(highdicom.color.CIELabColor(*lab).value)
    return segment
