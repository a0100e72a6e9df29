"""What is in a folder of images, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Compose

from medsaga.failures import failure_of
from medsaga.reading import PICTURES, Grid, ImageFile, open_image, suffix_of
from medsaga.reading.dicom_geometry import plane_of
from medsaga.reading.dicom_labels import dicom_label_kind
from medsaga.reading.labels import whole_numbers
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged

from .case import files_of, inputs_of
from .layouts import Layout, UnknownLayoutError, recognise

__all__ = ["FoundFile", "cases_in", "check_case", "describe_case", "read_case"]

_LABEL_FOLDERS = {"derivatives", "labels", "labelsTr", "labelsTs", "labelsVa", "masks"}
_ANY_CLASS = 256  # more classes than a label has; only a bundle says which are meant
_SHOWN_VALUES = 12
_FEW_VALUES = 65  # a label with more values does not hold class numbers


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


def describe_case(case: Mapping[str, Any]) -> dict[str, FoundFile]:
    """What the headers of a case's files say, or why they cannot be read.

    Args:
        case: with ``image`` and ``label``, or one of them, as :func:`~medsaga.data.case.files_of` takes it.

    Returns:
        a row for each path.
    """
    return {
        path: _describe(path, key == "label")
        for key in ("image", "label")
        if key in case
        for path in files_of({key: case[key]})
    }


def _describe(path: str, label: bool) -> FoundFile:
    kind = suffix_of(path).lstrip(".") or "DICOM"
    drawn = dicom_label_kind(path) if label else ""
    found = FoundFile(path, f"label, {drawn or kind}" if label else kind)
    if drawn:  # drawn on the image's grid by class names: errors are found when it is read
        return found
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


def check_case(case: Mapping[str, Any], layout: Layout | None = None) -> list[FoundFile]:
    """Describe the files of a case and read them to their end, as a training does.

    An image must have finite values and contrast, and a label class numbers. Both must have the same shape and place.

    Args:
        case: with ``image`` and ``label``, or one of them.
        layout: of the folder, whose classes and channels are expected.
    """
    if layout is None:
        return read_case(case)[0]
    names = ["background", *layout.classes] if layout.classes else None
    return read_case(case, names, len(layout.channel_names) if len(layout.channel_names) > 1 else None)[0]


def read_case(
    case: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    num_channels: int | None = None,
    plane: str | None = "auto",
) -> tuple[list[FoundFile], dict[str, torch.Tensor] | None]:
    """:func:`check_case`, with the image and label that were read.

    Args:
        case: with ``image`` and ``label``, or one of them.
        class_names: of the label, background first, for labels whose files say which class is which.
        num_channels: of the image; by default one for each of its files.
        plane: as of :class:`~medsaga.transforms.OrientSlicesd`.

    Returns:
        a row for each file, and image (C, H, W[, D]) and label (1, H, W[, D]), slices along the last axis; None in
        their place where the case cannot be used or has no image.
    """
    rows = describe_case(case)
    if any(row.wrong for row in rows.values()):
        return list(rows.values()), None
    try:
        if "image" not in case:
            path = str(case["label"])
            return [_with_values(rows[path], whole_numbers(open_image(path, label=True).load(), path))], None
        inputs = inputs_of(case)
        image, *_ = files_of(inputs)
        channels = num_channels or len(files_of({"image": case["image"]}))
        turned = Compose([ReadImaged(list(inputs), class_names=class_names), OrientSlicesd(list(inputs), plane)])(
            inputs
        )
        label = turned.get("label")
        mappable = label is not None and _mappable(np.asarray(label))
        # larger numbers can be mapped to classes, or count objects: then the label is checked without its values
        data = CheckCased(_ANY_CLASS, num_channels=channels)({**turned, "label": label > 0} if mappable else turned)
        data = {**data, "label": label} if mappable else data
        if data["image"].ndim == 4:
            plane = plane_of(Grid(tuple(data["image"].shape[1:]), np.asarray(data["image"].affine)))
            rows[image] = rows[image]._replace(plane=f"{rows[image].plane}, {plane}")
        if "label" in data:
            label, *_ = files_of({"label": case["label"]})
            rows[label] = _with_values(rows[label], np.asarray(data["label"]))
    except Exception as err:
        failure = failure_of(err, list(rows), "cannot be read")
        rows[failure.file] = rows[failure.file]._replace(wrong=failure.cause)
        return list(rows.values()), None
    return list(rows.values()), data


def _mappable(label: np.ndarray) -> bool:
    """Whether the values of a label go beyond :data:`_ANY_CLASS`, and are few or count objects from 1 on."""
    if label.min() < 0 or label.max() < _ANY_CLASS:
        return False
    values = np.unique(label)
    return len(values) <= _FEW_VALUES or values[-1] - values[0] == len(values) - 1


def _with_values(found: FoundFile, values: np.ndarray) -> FoundFile:
    present = np.unique(values).tolist()
    shown = ", ".join(str(int(value)) for value in present[:_SHOWN_VALUES])
    more = ", ..." if len(present) > _SHOWN_VALUES else ""
    return found._replace(remarks="; ".join(filter(None, [f"values {shown}{more}", found.remarks])))


def cases_in(root: Path, images: Sequence[str], labels: bool = False) -> tuple[Layout | None, list[dict[str, Any]]]:
    """Cases of a folder: images with their labels where its layout is known, and all other images one by one.

    Args:
        root: the folder.
        images: paths of all images and labels in it.
        labels: whether all of them are labels with class numbers.

    Returns:
        The layout (None where it is not a known one) and the cases.

    Raises:
        FileNotFoundError, ValueError: a file that the layout asks for is missing, or its index cannot be read.
    """
    try:
        layout = None if labels else recognise(root)
    except UnknownLayoutError:
        layout = None
    cases = [] if layout is None else layout.cases
    paired = {path for case in cases for path in files_of(case)}
    others = [path for path in images if path not in paired]
    alone = [{"label" if labels or _is_label(Path(path), root) else "image": path} for path in others]
    return layout, [*map(inputs_of, cases), *alone]


def _is_label(path: Path, root: Path) -> bool:
    folders = path.relative_to(root).parts[:-1]
    return suffix_of(path) == ".seg.nrrd" or not _LABEL_FOLDERS.isdisjoint((root.name, *folders))
