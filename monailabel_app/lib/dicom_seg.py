"""Label maps as DICOM segmentation objects (SEG) and back, on the voxels of the series that they belong to."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from monailabel.datastore.utils.colors import GENERIC_ANATOMY_COLORS
from pydicom.uid import SegmentationStorage

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


def write_seg(label: sitk.Image, names: dict[int, str], series_dir: Path, path: Path, creator: str) -> None:
    """Write one segment for each value that occurs in a label map.

    Args:
        label: unsigned integers on the series' grid; 2-D for a projection (X-ray).
        names: segment's label by value.
        series_dir: folder with the instances of the series, and nothing else.
        path: of the file to write.
        creator: what made the segmentation, at most 64 characters.

    Raises:
        RuntimeError: with the words of ``itkimage2segimage`` where it refuses.
    """
    values = [int(v) for v in np.unique(sitk.GetArrayViewFromImage(label)) if v]
    meta = {
        "ContentCreatorName": "MONAI^Label",
        "ContentLabel": "SEGMENTATION",
        "ContentDescription": "Segmentation made with MONAI Label",
        "SeriesDescription": f"Segmentation: {', '.join(names[v] for v in values)}"[:64],
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "BodyPartExamined": "",
        "segmentAttributes": [[_segment(v, names[v], creator) for v in values]],
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, planar = Path(series_dir), label.GetDimension() == 2
        if planar:
            source, label = _with_made_up_position(source, work), sitk.JoinSeries(label)
        sitk.WriteImage(label, str(work / "label.nii.gz"))
        (work / "meta.json").write_text(json.dumps(meta))
        words = [str(_converter()), "--inputImageList", str(work / "label.nii.gz")]
        words += ["--inputDICOMDirectory", str(source), "--inputMetadata", str(work / "meta.json")]
        words += ["--outputDICOM", str(work / "seg.dcm")]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode or not (work / "seg.dcm").is_file():
            raise RuntimeError(f"itkimage2segimage cannot write the segmentation: {done.stdout.strip()[-600:]}")
        seg = pydicom.dcmread(work / "seg.dcm")
        if planar:
            _remove_position(seg)
        for name in [e.keyword for e in seg if e.keyword.startswith("ClinicalTrial")]:
            delattr(seg, name)  # dcmqi fills them in, but this is no trial
        # dcmqi counts in seconds, too coarse to tell which of two segmentations is the newer one
        now = datetime.now()
        seg.ContentDate = seg.SeriesDate = now.strftime("%Y%m%d")
        seg.ContentTime = seg.SeriesTime = now.strftime("%H%M%S.%f")
        seg.save_as(path, write_like_original=False)


def read_seg(seg: pydicom.Dataset, image: sitk.Image, values: dict[str, int]) -> sitk.Image:
    """The label map that a segmentation describes.

    Args:
        seg: BINARY or FRACTIONAL (then from one half on); any number and order of segments.
        image: of the segmented series; 2-D for a projection.
        values: of the label map, by segment label. Segments of other names are left out.

    Returns:
        uint8 on the image's grid.

    Raises:
        ValueError: when it is no such segmentation, or not on the image's grid.
    """
    if seg.SOPClassUID != SegmentationStorage:
        raise ValueError(f"a {seg.SOPClassUID.name} is not read, only Segmentation Storage")
    by_key = {label_key(name): value for name, value in values.items()}
    names = segment_names(seg)
    shared = seg.SharedFunctionalGroupsSequence[0]
    frames = np.atleast_3d(seg.pixel_array.T).T  # frame, row, column; pydicom leaves the first out for a single one
    half = 0.5 * float(seg.get("MaximumFractionalValue", 1))
    label = np.zeros(image.GetSize()[::-1], np.uint8).T  # column, row, slice
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence):

        def group(name: str, groups: pydicom.Dataset = groups) -> pydicom.Dataset | None:
            found = groups.get(name) or shared.get(name)
            return found[0] if found else None

        number = int(group("SegmentIdentificationSequence").ReferencedSegmentNumber)
        value = by_key.get(label_key(names.get(number, "")))
        if value is None:
            continue
        row, column = np.nonzero(frame >= half)
        index = _indices(column, row, group, image)
        before = label[tuple(index.T)]
        if np.any((before != 0) & (before != value)):
            logger.warning("Segments overlap; %s is kept where it does", names[number])
        label[tuple(index.T)] = value
    result = sitk.GetImageFromArray(label.T)
    result.CopyInformation(image)
    return result


def _indices(column: np.ndarray, row: np.ndarray, group: Any, image: sitk.Image) -> np.ndarray:
    """Voxel indices (N×dimension) in ``image`` of a frame's pixels."""
    plane, orientation = group("PlanePositionSequence"), group("PlaneOrientationSequence")
    if image.GetDimension() == 2 or plane is None:  # a projection's segmentation has the same pixels as the image
        index = np.stack([column, row], 1)
        if image.GetDimension() == 3:
            index = np.pad(index, ((0, 0), (0, 1)))
    else:
        directions = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(v) for v in group("PixelMeasuresSequence").PixelSpacing)
        points = np.array(plane.ImagePositionPatient, float) + np.outer(column * right, directions[0])
        points += np.outer(row * down, directions[1])
        matrix = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        exact = (points - np.array(image.GetOrigin())) @ np.linalg.inv(matrix).T
        index = np.rint(exact).astype(int)
        if index.size and np.abs(exact - index).max() > 0.1:
            raise ValueError("its pixels do not lie on the series' voxels")
    if index.size and (index.min() < 0 or np.any(index.max(0) >= image.GetSize())):
        raise ValueError("it reaches beyond the series")
    return index


def _segment(value: int, name: str, creator: str) -> dict[str, Any]:
    """dcmqi's description of a segment."""
    key = label_key(name)
    # a name without a known code gets one of this project's own scheme, whose code is the name
    private = ((key.replace(" ", "_")[:16], name), None)
    (code, meaning), modifier = _CODES.get(key, private)
    attributes = {
        "labelID": value,
        "SegmentLabel": name[:64],
        "SegmentDescription": name[:64],
        "SegmentAlgorithmType": "SEMIAUTOMATIC",
        "SegmentAlgorithmName": creator[:64],
        "SegmentedPropertyCategoryCodeSequence": _code("123037004", "Anatomical Structure"),
        "SegmentedPropertyTypeCodeSequence": _code(code, meaning, "SCT" if key in _CODES else "99MEDSAGA"),
        "recommendedDisplayRGBValue": list(GENERIC_ANATOMY_COLORS.get(key, _PALETTE[(value - 1) % len(_PALETTE)])),
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


def _with_made_up_position(source: Path, work: Path) -> Path:
    """A copy of a projection as a slice at the origin: dcmqi takes nothing without a position in the patient."""
    folder = work / "series"
    folder.mkdir()
    for file in source.iterdir():
        image = pydicom.dcmread(file)
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing = image.get("PixelSpacing") or image.get("ImagerPixelSpacing") or [1, 1]
        image.SliceThickness = 1
        image.FrameOfReferenceUID = image.SeriesInstanceUID
        image.save_as(folder / file.name)
    return folder


def _remove_position(seg: pydicom.Dataset) -> None:
    """Leaves the frames tied to the image's pixels (derivation image) and to no place in the patient."""
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        if name in seg:
            delattr(seg, name)
    for groups in (*seg.SharedFunctionalGroupsSequence, *seg.PerFrameFunctionalGroupsSequence):
        for name in ("PlanePositionSequence", "PlaneOrientationSequence"):
            if name in groups:
                delattr(groups, name)
        if "FrameContentSequence" in groups:
            content = groups.FrameContentSequence[0]
            content.DimensionIndexValues = [np.atleast_1d(content.DimensionIndexValues).tolist()[0]]
    seg.DimensionIndexSequence = seg.DimensionIndexSequence[:1]
    seg.PatientOrientation = ""  # to be there, though empty, where there is no orientation of the plane
