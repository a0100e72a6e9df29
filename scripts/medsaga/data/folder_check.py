"""What is in a folder of images, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from monai.transforms import Compose

from medsaga.failures import failure_of
from medsaga.reading import PICTURES, Grid, ImageFile, open_image, suffix_of
from medsaga.reading.dicom_geometry import plane_of
from medsaga.reading.labels import whole_numbers
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged

from .case import files_of
from .datalists import bids_datalist, decathlon_datalist, paired_folders_datalist

__all__ = ["FoundFile", "cases_in", "check_case", "describe_case"]

_PAIRS = (("images", "masks"), ("images", "labels"), ("imagesTr", "labelsTr"))
_LABEL_FOLDERS = {"derivatives", "labels", "labelsTr", "labelsTs", "labelsVa", "masks"}
_ANY_CLASS = 256  # more classes than a label has: which are meant is what a bundle says
_SHOWN_VALUES = 12


class FoundFile(NamedTuple):
    """A file, a folder with a series, or a series of a folder, as a row of a table.

    Attributes:
        file: its path.
        kind: its suffix, or DICOM and the modality; of a label, ``label`` before it.
        size: columns × rows × slices.
        spacing: of these in mm; empty for pictures.
        plane: orientation code of its axes, and the plane that its slices are taken in.
        remarks: values of a label, channels, notices of what was left out or corrected.
        wrong: why it cannot be used; empty where it can.
    """

    file: str
    kind: str = ""
    size: str = ""
    spacing: str = ""
    plane: str = ""
    remarks: str = ""
    wrong: str = ""


def describe_case(case: Mapping[str, str]) -> dict[str, FoundFile]:
    """What the headers of a case's image and label say, or why they cannot be read.

    Args:
        case: with the paths ``image`` and ``label``, or one of them.

    Returns:
        a row for each path.
    """
    return {str(case[key]): _describe(str(case[key]), key == "label") for key in ("image", "label") if key in case}


def _describe(path: str, label: bool) -> FoundFile:
    kind = suffix_of(path).lstrip(".") or "DICOM"
    found = FoundFile(path, f"label, {kind}" if label else kind)
    try:
        return _with_header(found, open_image(path, label))
    except Exception as err:
        return found._replace(wrong=failure_of(err, [path], "cannot be read").cause)


def _with_header(found: FoundFile, image: ImageFile) -> FoundFile:
    grid, picture = image.grid, suffix_of(found.file) in PICTURES
    channels = {1: [], 3: ["RGB"]}.get(grid.channels, [f"{grid.channels} channels"])
    notices = [notice.removeprefix(f"{found.file}: ") for notice in image.notices]
    return found._replace(
        kind=f"{found.kind} {image.modality}".rstrip(),
        size="×".join(map(str, grid.shape)),
        spacing="" if picture else "×".join(f"{side:.3g}" for side in grid.spacing),
        plane="".join(map(str, nib.aff2axcodes(grid.affine))) if grid.placed else "" if picture else "projection",
        remarks="; ".join([*channels, *notices]),
    )


def check_case(case: Mapping[str, str]) -> list[FoundFile]:
    """Describe the files of a case and read them to their end, as a training does.

    An image must have finite values and contrast, a label class numbers, and both one shape and place.

    Args:
        case: with the paths ``image`` and ``label``, or one of them.
    """
    rows = describe_case(case)
    if any(row.wrong for row in rows.values()):
        return list(rows.values())
    try:
        if "image" not in case:
            path = str(case["label"])
            return [_with_values(rows[path], whole_numbers(open_image(path, label=True).load(), path))]
        keys = [key for key in ("image", "label") if key in case]
        transforms = Compose([ReadImaged(keys), OrientSlicesd(keys, "auto"), CheckCased(_ANY_CLASS)])
        data = transforms({key: str(case[key]) for key in keys})
        image, path = data["image"], str(case["image"])
        if image.ndim == 4:
            plane = plane_of(Grid(tuple(image.shape[1:]), np.asarray(image.affine)))
            rows[path] = rows[path]._replace(plane=f"{rows[path].plane}, {plane}")
        if "label" in case:
            rows[str(case["label"])] = _with_values(rows[str(case["label"])], np.asarray(data["label"]))
    except Exception as err:
        failure = failure_of(err, list(rows), "cannot be read")
        rows[failure.file] = rows[failure.file]._replace(wrong=failure.cause)
    return list(rows.values())


def _with_values(found: FoundFile, values: np.ndarray) -> FoundFile:
    present = np.unique(values).tolist()
    shown = ", ".join(str(int(value)) for value in present[:_SHOWN_VALUES])
    more = ", ..." if len(present) > _SHOWN_VALUES else ""
    return found._replace(remarks="; ".join(filter(None, [f"values {shown}{more}", found.remarks])))


def cases_in(root: Path, images: Sequence[str], labels: bool = False) -> tuple[str, list[dict[str, str]]]:
    """Cases of a folder: images with their labels where its layout is known, and all other images one by one.

    Args:
        root: the folder.
        images: paths of all images and labels in it.
        labels: all of them hold class numbers.

    Returns:
        Name of the layout, empty where it is none that is known, and the cases.

    Raises:
        FileNotFoundError, ValueError: a file that the layout asks for is missing, or its index cannot be read.
    """
    layout, cases = ("", []) if labels else _labelled_cases(root)
    paired = {path for case in cases for path in files_of(case)}
    others = [path for path in images if path not in paired]
    alone = [{"label" if labels or _is_label(Path(path), root) else "image": path} for path in others]
    return layout, [*({key: case[key] for key in ("image", "label")} for case in cases), *alone]


def _is_label(path: Path, root: Path) -> bool:
    folders = path.relative_to(root).parts[:-1]
    return suffix_of(path) == ".seg.nrrd" or not _LABEL_FOLDERS.isdisjoint((root.name, *folders))


def _labelled_cases(root: Path) -> tuple[str, list[dict[str, str]]]:
    if (root / "dataset.json").is_file():
        return "Medical Segmentation Decathlon (dataset.json)", decathlon_datalist(root, ("training", "validation"))
    for images, labels in _PAIRS:
        if (root / images).is_dir() and (root / labels).is_dir():
            layout = f"images and labels of the same names ({images}, {labels})"
            return layout, paired_folders_datalist(root, images, labels)
    if (root / "derivatives").is_dir():
        raw = root / "rawdata" if (root / "rawdata").is_dir() else root
        images, labels = _bids_suffixes(raw, "sub-*"), _bids_suffixes(root / "derivatives", "**/sub-*")
        # which of several sequences the labels are of is what a bundle says
        cases = bids_datalist(root, *images, *labels) if len(images) == len(labels) == 1 else []
        return "Brain Imaging Data Structure (derivatives)", cases
    return "", []


def _bids_suffixes(folder: Path, subjects: str) -> set[str]:
    """Last parts of the names of images, ``dwi`` of ``sub-0001_ses-0001_dwi.nii.gz``."""
    return {path.name.split(".")[0].rpartition("_")[2] for path in folder.glob(f"{subjects}/**/sub-*_*.nii*")}
