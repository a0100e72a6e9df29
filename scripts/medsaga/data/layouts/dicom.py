"""DICOM series with segmentations (SEG) or structure sets (RTSTRUCT) that refer to them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.filereader import read_partial
from pydicom.uid import UID

from medsaga.data.found_images import some
from medsaga.reading import suffix_of
from medsaga.reading.dicom import is_dicom
from medsaga.reading.dicom_labels import label_names

from .layout import Case, Layout, OtherLayoutError, existing_folder, layout_of
from .listing import remembered, walk_folders
from .named_files import unique_names

__all__ = ["dicom_datalist", "find_dicom"]

_LABELS = {"1.2.840.10008.5.1.4.1.1.66.4": "SEG", "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT"}
_LAST = 0x00200052  # FrameOfReferenceUID, behind which nothing of an image is needed here
_TAGS = ["SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
_LOOKED_AT = 10  # files of a folder of which all are opened; of more, four


class _Header(NamedTuple):
    path: Path
    kind: str  # SEG, RTSTRUCT, image or empty
    series: str
    frame: str
    study: str
    patient: str


class _Found(NamedTuple):
    series: dict[str, tuple[Path, _Header]]  # what opens a series, by its UID
    labels: list[_Header]


def dicom_datalist(dataset_dir: str | Path) -> list[Case]:
    """Labelled cases of a folder of DICOM files in which SEG or RTSTRUCT objects refer to series of images.

    Series and labels may lie in any folders. A label is of the series that it refers to; of one that names only a frame
    of reference, or nothing, of the one series with that frame, or of the same study. Series without a label are left
    out. Patients are told apart by a digest of their PatientID, which itself is kept nowhere.

    Args:
        dataset_dir: the folder.

    Raises:
        FileNotFoundError: no such folder, or no label that refers to a series in it.
        ValueError: two labels of one series.
    """
    folder = existing_folder(dataset_dir, "data set folder")
    found = _scan(folder)
    label_of, astray = _labelled(found)
    if not label_of:
        hint = f"; {some(astray)} refer to series that are not there" if astray else ""
        raise FileNotFoundError(f"{folder}: it has no DICOM segmentation or structure set of a series in it{hint}.")
    cases: list[Case] = []
    for uid, (path, header) in found.series.items():
        if uid in label_of:
            where = path if path.is_dir() else path.parent
            name = "_".join(where.relative_to(folder).parts) or folder.resolve().name
            case: Case = {"image": str(path), "label": str(label_of[uid]), "name": name if path.is_dir() else uid}
            case["patient"] = hashlib.sha256(header.patient.encode()).hexdigest()[:12] if header.patient else ""
            cases.append(case)
    return unique_names(cases)


def _labelled(found: _Found) -> tuple[dict[str, Path], list[str]]:
    """The label by the UID of its series, and labels of none."""
    label_of: dict[str, Path] = {}
    astray: list[str] = []
    for label in found.labels:
        uid = _referred(label, found)
        if uid is None:
            astray.append(str(label.path))
        elif uid in label_of:
            raise ValueError(
                f"{label_of[uid]} and {label.path} are labels of the same series {found.series[uid][0]}; keep one."
            )
        else:
            label_of[uid] = label.path
    return label_of, astray


def find_dicom(folder: Path, labels: Path | None = None) -> Layout:
    """DICOM series with SEG or RTSTRUCT labels.

    Raises:
        OtherLayoutError: there are none.
        FileNotFoundError, ValueError: labels that refer to no series, or two to one.
    """
    if labels is not None or not folder.is_dir():
        raise OtherLayoutError("DICOM files")
    found = _scan(folder)
    if not found.labels:
        raise OtherLayoutError("DICOM segmentations (SEG) or structure sets (RTSTRUCT)")
    cases = dicom_datalist(folder)
    names = list(dict.fromkeys(name for case in cases for name in label_names(case["label"])))
    notes = [f"The classes are the names in {' and '.join(sorted({label.kind for label in found.labels}))}."]
    if len(found.series) > len(cases):
        notes.append(f"{len(found.series) - len(cases)} of {len(found.series)} series have no label and are left out.")
    if len(found.labels) > len(cases):
        number = len(found.labels) - len(cases)
        notes.append(f"{number} of {len(found.labels)} labels are left out, because their series is not there.")
    return layout_of(
        "DICOM with SEG or RTSTRUCT",
        dicom_datalist,
        folder,
        {},
        cases,
        classes={name: value for value, name in enumerate(names, 1)},
        notes=tuple(notes),
    )


def _scan(folder: Path) -> _Found:
    """Series and labels of a folder and the folders in it, by few headers of each; by all where these do not do."""
    return remembered("DICOM", folder, lambda: _scan_enough(folder))


def _scan_enough(folder: Path) -> _Found:
    found = _scanned(folder, everything=False)
    if any(_referred(label, found) is None for label in found.labels):
        return _scanned(folder, everything=True)
    return found


def _scanned(folder: Path, everything: bool) -> _Found:
    series: dict[str, tuple[Path, _Header]] = {}
    labels: list[_Header] = []
    for place, _, names in walk_folders(folder):
        paths = [Path(place, name) for name in names if suffix_of(name) in ("", ".dcm", ".dicom", ".ima")]
        headers = list(_headers(paths if everything else _telling(paths)))
        if len({header.series for header in headers if header.kind == "image"}) > 1:
            headers = list(_headers(paths))
        images: dict[str, list[_Header]] = defaultdict(list)
        for header in headers:
            if header.kind == "image":
                images[header.series].append(header)
            elif header.kind:
                labels.append(header)
        for uid, of_series in images.items():
            alone = len(of_series) == 1 and (len(images) > 1 or len(paths) == 1)
            path = of_series[0].path if alone else Path(place) if len(images) == 1 else Path(place, uid)
            series.setdefault(uid, (path, of_series[0]))
    return _Found(series, sorted(labels))


def _telling(paths: list[Path]) -> list[Path]:
    """Files of a folder that tell what is in it: all of few; else some, the smallest and largest among them."""
    if len(paths) <= _LOOKED_AT:
        return paths
    by_size = sorted(paths, key=os.path.getsize)
    by_name = {re.sub(r"\d+", "", path.name): path for path in paths}  # CT.1.2.dcm and RS.1.dcm
    return list(dict.fromkeys([paths[0], paths[-1], by_size[0], by_size[-1], *list(by_name.values())[:_LOOKED_AT]]))


def _headers(paths: list[Path]) -> Iterator[_Header]:
    for path in paths:
        if not is_dicom(path):
            continue
        try:
            with path.open("rb") as file:
                found = read_partial(file, lambda tag, vr, length: tag > _LAST, force=True, specific_tags=_TAGS)
            uid, series, frame, study, patient = (
                str(found.get(tag) or "")
                for tag in ("SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID", "PatientID")
            )
        except Exception:  # a damaged file is named when its series is read
            continue
        kind = _LABELS.get(uid) or ("image" if "Image Storage" in UID(uid).name else "")
        yield _Header(path, kind, series, frame, study, patient)


def _referred(label: _Header, found: _Found) -> str | None:
    """UID of the series that a label is of; None where it is not there, or cannot be told."""
    try:
        content = pydicom.dcmread(
            label.path,
            stop_before_pixels=True,
            force=True,
            specific_tags=["ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"],
        )
        uids = [str(item.SeriesInstanceUID) for item in content.get("ReferencedSeriesSequence") or []]
        frames = [label.frame]
        for frame in content.get("ReferencedFrameOfReferenceSequence") or []:
            frames.append(str(frame.get("FrameOfReferenceUID") or ""))
            for study in frame.get("RTReferencedStudySequence") or []:
                uids += [str(item.SeriesInstanceUID) for item in study.get("RTReferencedSeriesSequence") or []]
    except Exception:  # read again, and refused by name, with the case
        uids, frames = [], [label.frame]
    if uids:
        return next((uid for uid in uids if uid in found.series), None)
    for same in (
        [uid for uid, (_, header) in found.series.items() if header.frame and header.frame in frames],
        [uid for uid, (_, header) in found.series.items() if header.study and header.study == label.study],
    ):
        if len(same) == 1:
            return same[0]
    return None
