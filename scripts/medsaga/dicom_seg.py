"""Label maps as DICOM segmentation objects (SEG) and back, on the voxels of the series that they belong to.

Writing needs dcmqi (``pip install medsaga[label]``), reading does not.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import SegmentationStorage

from medsaga.dicom_stand_ins import point_to_frames, point_to_pixels, write_stand_ins
from medsaga.nifti import write_nifti
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
        automatic: whether nobody has had a hand in it.

    Raises:
        ValueError: no voxel is segmented.
        RuntimeError: dcmqi is not installed, or refuses, with its words.
    """
    values = [int(v) for v in np.unique(label) if v]
    if not values:
        raise ValueError("no voxel is segmented, and a DICOM segmentation needs at least one")
    meta = {
        "ContentCreatorName": "medsaga",
        "ContentLabel": "SEGMENTATION",
        "ContentDescription": "Segmentation made with medsaga",
        "SeriesDescription": f"Segmentation: {', '.join(names[v] for v in values)}"[:64],
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "BodyPartExamined": "",
        "segmentAttributes": [[_segment(v, names[v], creator, automatic) for v in values]],
    }
    with tempfile.TemporaryDirectory() as name:
        work, planar = Path(name), len(grid.shape) == 2
        source = work / "series"
        source.mkdir()
        frames = write_stand_ins(files, grid, source)
        volume = label.reshape(*grid.shape, 1) if planar else label
        write_nifti(volume.astype(np.uint16), grid.affine, work / "label.nii.gz")
        (work / "meta.json").write_text(json.dumps(meta))
        words = [str(_converter()), "--inputImageList", str(work / "label.nii.gz")]
        words += ["--inputDICOMDirectory", str(source), "--inputMetadata", str(work / "meta.json")]
        words += ["--outputDICOM", str(work / "seg.dcm")]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode or not (work / "seg.dcm").is_file():
            raise RuntimeError(f"itkimage2segimage cannot write the segmentation: {done.stdout.strip()[-600:]}")
        seg = pydicom.dcmread(work / "seg.dcm")
        if planar:
            point_to_pixels(seg)
        if frames:
            point_to_frames(seg, frames)
        for name in [e.keyword for e in seg if e.keyword.startswith("ClinicalTrial")]:
            delattr(seg, name)  # dcmqi fills them in, but this is no trial
        # dcmqi counts in seconds, too coarse to tell which of two segmentations is the newer one
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
        raise ValueError(f"a {seg.SOPClassUID.name} is not read, only Segmentation Storage")
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
            logger.warning("Segments overlap; %s is kept where it does", names[number])
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


def _segment(value: int, name: str, creator: str, automatic: bool) -> dict[str, Any]:
    """dcmqi's description of a segment."""
    key = label_key(name)
    # a name without a known code gets one of this project's own scheme, whose code is the name
    private = ((key.replace(" ", "_")[:16], name), None)
    (code, meaning), modifier = _CODES.get(key, private)
    attributes = {
        "labelID": value,
        "SegmentLabel": name[:64],
        "SegmentDescription": name[:64],
        "SegmentAlgorithmType": "AUTOMATIC" if automatic else "SEMIAUTOMATIC",
        "SegmentAlgorithmName": creator[:64],
        "SegmentedPropertyCategoryCodeSequence": _code("123037004", "Anatomical Structure"),
        "SegmentedPropertyTypeCodeSequence": _code(code, meaning, "SCT" if key in _CODES else "99MEDSAGA"),
        "recommendedDisplayRGBValue": list(_COLOURS.get(key, _PALETTE[(value - 1) % len(_PALETTE)])),
    }
    if modifier:
        attributes["SegmentedPropertyTypeModifierCodeSequence"] = _code(*modifier)
    return attributes


def _code(value: str, meaning: str, scheme: str = "SCT") -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning[:64]}


def _converter() -> Path:
    """dcmqi's program itself: its command need not be on the PATH."""
    package = importlib.util.find_spec("dcmqi")
    found = sorted(Path(package.origin).parent.glob("bin/itkimage2segimage*")) if package else []
    if not found:
        raise RuntimeError("Writing DICOM segmentations needs the package dcmqi: pip install medsaga[label]")
    return found[0]
