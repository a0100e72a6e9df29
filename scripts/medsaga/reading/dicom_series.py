"""Which DICOM files of a folder belong to one image, and which are something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import SecondaryCaptureImageStorage

from .dicom_files import DicomFile, is_dicom, other_than_image, read_header
from .dicom_geometry import Slice, alike, grid_of, plane_of, slices_of, turned
from .image import ReadingError
from .names import suffix_of

__all__ = ["Folder", "main_slices", "read_folder", "scouts_beside"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_MOST_GEOMETRIES = 20


@dataclass
class Folder:
    """DICOM files directly in a folder.

    Attributes:
        images: by SeriesInstanceUID.
        left_out: why each other file is left out.
        damaged: why files that should be DICOM cannot be read; they may be missing from a series.
    """

    images: dict[str, list[DicomFile]]
    left_out: dict[Path, str]
    damaged: dict[Path, ReadingError]


def read_folder(path: Path) -> Folder:
    """Read the headers of all files directly in a folder."""
    folder = Folder({}, {}, {})
    suspects = []
    for file in sorted(p for p in path.iterdir() if not p.is_dir()):
        if file.name.startswith("."):
            folder.left_out[file] = "hidden"
        elif file.name.upper() == "DICOMDIR":
            folder.left_out[file] = "DICOMDIR"
        elif not is_dicom(file):
            folder.left_out[file] = "no DICOM"
            suspects.append(file)
        else:
            _add(folder, file)
    # a slice that has become unreadable must not be left out without an error, least of all the first or the last
    suffixes = {_suffix(f.path) for files in folder.images.values() for f in files} | {*_DICOM_SUFFIXES}
    for file in suspects:
        if _suffix(file) in _DICOM_SUFFIXES or (_suffix(file) in suffixes and not _is_text(file)):
            del folder.left_out[file]
            folder.damaged[file] = ReadingError(f"{file}: is no DICOM file, but is named like one; is it damaged?")
    return folder


def _add(folder: Folder, path: Path) -> None:
    try:
        file = read_header(path)
        kind = other_than_image(file)
    except ReadingError as e:
        folder.damaged[path] = e
        return
    if kind:
        folder.left_out[path] = kind
    elif not file.text("SeriesInstanceUID") and not file.element:
        folder.damaged[path] = ReadingError(f"{path}: has neither a SeriesInstanceUID nor pixels; is it damaged?")
    else:
        folder.images.setdefault(file.text("SeriesInstanceUID"), []).append(file)


def _suffix(path: Path) -> str:
    """A file's suffix; empty for IM0001 and for names that are UIDs."""
    known = suffix_of(path)
    return known or ("" if path.suffix[1:].isdigit() else path.suffix.lower())


def _is_text(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return False
    return bool(start.strip()) and all(c >= 32 or c in b"\t\n\r\f" for c in start)


def main_slices(where: Path, files: Sequence[DicomFile]) -> tuple[list[Slice], dict[Path, str]]:
    """The slices of a series that make its image, and why each other file is left out.

    Slices belong together if they have the same direction, size, spacing and frame of reference. Scouts are left out:
    images marked LOCALIZER, and single slices in another direction than the others of the series.

    Raises:
        ReadingError: the slices do not make exactly one image; the text says which images there are.
    """
    left_out: dict[Path, str] = {}
    others = [f for f in files if not _localizer(f)]
    if others and len(others) < len(files):
        left_out.update({f.path: "scout" for f in files if _localizer(f)})
        files = others
    many = [f for f in files if f.frames > 1]
    if many and len(files) > 1:
        raise ReadingError(
            f"{where}: {len(many)} multi-frame images are among the {len(files)} files of a series; give one file, for "
            f"example {many[0].path.name}."
        )
    slices = [s for f in files for s in slices_of(f)]
    if all(s.position is None for s in slices):
        return slices, left_out
    groups = _groups(where, slices)
    main = groups[0]
    if many and len(groups) > 1:
        raise ReadingError(f"{many[0].path}: its frames make several volumes: {', '.join(map(_described, groups))}.")
    for group in groups[1:]:
        first, single = group[0], len(group) == 1 and len(main) > 1
        if first.position is None and first.file.sop_class != main[0].file.sop_class:
            left_out.update({s.file.path: "without a position in the patient" for s in group})
        elif first.position is None or first.axes is None:
            raise ReadingError(
                f"{first.file.path}: has no ImagePositionPatient or ImageOrientationPatient, unlike the other "
                f"{len(main)} images of its series; is the file damaged?"
            )
        elif single and turned(first, main[0]):
            left_out[first.file.path] = "scout"
        elif single:
            raise ReadingError(f"{first.file.path}: {_difference(first, main[0])} the other slices of its series.")
        else:
            raise ReadingError(
                f"{where}: its one series holds several volumes: {', '.join(map(_described, groups))}. Put each "
                f"into a folder of its own."
            )
    return main, left_out


def _groups(where: Path, slices: Iterable[Slice]) -> list[list[Slice]]:
    groups: list[list[Slice]] = []
    for s in slices:
        group = next((g for g in groups if alike(g[0], s)), None)
        if group is None:
            groups.append(group := [])
        group.append(s)
        if len(groups) > _MOST_GEOMETRIES:
            raise ReadingError(
                f"{where}: the images of this series differ in direction, size, spacing or frame of reference more "
                f"than {_MOST_GEOMETRIES} times, so they make no volume. Give a single file instead."
            )
    return sorted(groups, key=len, reverse=True)


def _difference(one: Slice, other: Slice) -> str:
    if one.size != other.size:
        return f"has {one.size[0]}×{one.size[1]} pixels, unlike the {other.size[0]}×{other.size[1]} of"
    if one.spacing is not None and other.spacing is not None and not np.allclose(one.spacing, other.spacing, rtol=1e-3):
        return f"has pixels of {_mm(one)} mm, unlike the {_mm(other)} mm of"
    return "has another FrameOfReferenceUID than"


def _mm(s: Slice) -> str:
    return "none" if s.spacing is None else "×".join(f"{v:g}" for v in s.spacing)


def _described(group: list[Slice]) -> str:
    first, count = group[0], len(group)
    try:
        plane = plane_of(grid_of(first.file.path, [first])[0])
    except ReadingError:
        plane = "without a position"
    return f"{count} {plane} slice{'s' * (count > 1)} ({first.size[0]}×{first.size[1]}, pixels of {_mm(first)} mm)"


def scouts_beside(series: dict[str, list[Slice]]) -> dict[str, str]:
    """Series that only accompany another one in the folder, by UID, and what they are.

    They are scouts, single slices in another direction or of another size than the volumes, and captured screens.
    """
    volumes = [s[0] for s in series.values() if len(s) > 1 and not _localizer(s[0].file)]
    found: dict[str, str] = {}
    for uid, slices in series.items() if volumes else ():
        first = slices[0]
        if all(_localizer(s.file) for s in slices):
            found[uid] = "scout"
        elif first.file.sop_class == SecondaryCaptureImageStorage and first.position is None:
            found[uid] = "captured screen"
        elif (
            len(slices) == 1
            and first.position is not None
            and all(turned(first, v) or first.size != v.size for v in volumes)
        ):
            found[uid] = "scout"
    return found


def _localizer(file: DicomFile) -> bool:
    return "LOCALIZER" in file.text("ImageType").upper().split("\\")
