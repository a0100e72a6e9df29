"""DICOM: files, enhanced multi-frame files, and folders with the slices of a series."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from .dicom_files import is_dicom, other_than_image, read_header
from .dicom_frames import check_frames
from .dicom_geometry import Slice, grid_of, is_projection, plane_of
from .dicom_pixels import channels_of, check_values, read_values
from .dicom_series import main_slices, read_folder, scouts_beside
from .image import Grid, ImageFile, ReadingError, check_size

__all__ = ["DicomSeries", "is_dicom", "list_series", "open_dicom", "series_files"]

_MOST_FOLDERS = 1000  # that are looked through for a message


@dataclass(frozen=True)
class DicomSeries:
    """One series of a folder.

    Attributes:
        uid: SeriesInstanceUID.
        path: what :func:`open_dicom` reads it from: the folder, or ``FOLDER/UID`` where there are several.
        files: in the order of the slices; in the order of their names where there is a problem.
        modality: ``CT``, ``MR``...
        plane: ``axial``, ``coronal`` or ``sagittal``, with the angle of an oblique one; ``projection``; or empty.
        grid: of its voxels, None where there is a problem.
        problem: why it cannot be read, beginning with the file's name, or None.
        notices: sentences of what was left out.
    """

    uid: str
    path: Path
    files: tuple[Path, ...]
    modality: str
    plane: str = ""
    grid: Grid | None = None
    problem: str | None = None
    notices: tuple[str, ...] = ()
    slices: tuple[Slice, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        if self.grid is None:
            return f"{self.uid}: {self.modality or 'images'}, {len(self.files)} files"
        size = "×".join(str(n) for n in self.grid.shape)
        spacing = "×".join(f"{v:g}" for v in self.grid.spacing)
        return f"{self.uid}: {self.modality or 'images'}, {self.plane}, {size} of {spacing} {self.grid.unit}"


def list_series(folder: str | Path) -> list[DicomSeries]:
    """The image series among the files directly in a folder.

    Everything that is not an image of a patient is left out with a notice: DICOMDIR, segmentations, reports and the
    like, other files, and scouts beside a volume.

    Args:
        folder: to look in, without its sub-folders.

    Returns:
        one entry for each series, also for those with a problem, and one for each file of X-rays; empty where there is
        no DICOM image. A file that should be DICOM but cannot be read is an entry without a UID. It is also a problem
        of every series of several files, because the file may belong to it.
    """
    folder = Path(folder)
    # all series of a folder share these headers, when they are listed, named in the cache and read
    return list(_listed(folder, tuple(sorted(map(_state, os.scandir(folder))))))


def _state(entry: os.DirEntry) -> tuple[str, int, int]:
    """Name, size and time of a file; for a broken link, those of the link itself."""
    state = entry.stat(follow_symlinks=os.path.exists(entry))
    return entry.name, state.st_size, state.st_mtime_ns


@lru_cache(maxsize=2)
def _listed(folder: Path, state: tuple[tuple[str, int, int], ...]) -> tuple[DicomSeries, ...]:
    """:func:`list_series` of a folder whose files have this state."""
    found = read_folder(folder)
    damaged = next(map(str, found.damaged.values()), None)
    left_out = dict(found.left_out)
    main: dict[str, list[Slice]] = {}
    problems: dict[str, str] = {}
    for uid, files in found.images.items():
        try:
            main[uid], others = main_slices(folder, files)
            left_out.update(others)
        except ReadingError as e:
            problems[uid] = str(e)
    for uid, kind in scouts_beside(main).items():
        left_out.update({s.file.path: kind for s in main.pop(uid)})
    notices = _left_out(left_out)
    uids = [uid for uid in found.images if uid in main or uid in problems]
    series: list[DicomSeries] = []
    for uid in uids:
        files = found.images[uid]
        problem = problems.get(uid) or (damaged if len(files) > 1 else None)
        slices = main.get(uid, [])
        if len(slices) > 1 and all(map(is_projection, slices)):
            series += [_checked(uid, s.file.path, [s], notices) for s in slices]
            continue
        path = folder if len(uids) == 1 else folder / uid
        if problem:
            names, modality = tuple(f.path for f in files), files[0].text("Modality")
            series.append(DicomSeries(uid, path, names, modality, problem=problem, notices=notices))
        else:
            series.append(_checked(uid, path, slices, notices))
    damaged_files = [DicomSeries("", file, (file,), "", problem=str(e)) for file, e in found.damaged.items()]
    return (*series, *damaged_files)


def _checked(uid: str, path: Path, slices: Sequence[Slice], notices: tuple[str, ...]) -> DicomSeries:
    """Slices as a series, with its grid or its problem."""
    files = tuple(dict.fromkeys(s.file.path for s in slices))
    modality = slices[0].file.text("Modality")
    where = files[0] if len(files) == 1 else path
    try:
        for file in dict.fromkeys(s.file for s in slices):
            check_frames(file)
        notices += check_values(where, slices)
        grid, slices = grid_of(where, slices)
        channels = channels_of(slices[0].file)
        check_size(where, grid.shape, channels)
        grid = Grid(grid.shape, grid.affine, channels, grid.placed, grid.unit)
    except ReadingError as e:
        return DicomSeries(uid, path, files, modality, problem=str(e), notices=notices)
    files = tuple(dict.fromkeys(s.file.path for s in slices))
    return DicomSeries(uid, path, files, modality, plane_of(grid), grid, None, notices, tuple(slices))


def open_dicom(path: str | Path) -> ImageFile:
    """Read and check the headers of a DICOM image.

    Args:
        path: a file (one slice, an X-ray, a picture, an enhanced multi-frame volume), a folder with the slices of one
            series, or ``FOLDER/SERIES_INSTANCE_UID`` for one series of a folder that holds several.

    Raises:
        FileNotFoundError: nothing is there.
        ReadingError: naming file or folder, and what is wrong with it.
    """
    series = _series(Path(path))
    assert series.grid is not None
    load = partial(read_values, Path(path), series.slices, series.grid.shape)
    return ImageFile(series.grid, load, series.notices, series.modality)


def series_files(path: str | Path) -> list[Path]:
    """The files that :func:`open_dicom` reads a path's image from, in the order of its slices.

    Raises:
        FileNotFoundError: nothing is there.
        ReadingError: naming file or folder, and what is wrong with it.
    """
    return list(_series(Path(path)).files)


def _series(path: Path) -> DicomSeries:
    series = _file(path) if path.is_file() else _folder(path) if path.is_dir() else _one_of(path)
    if series.problem:
        raise ReadingError(series.problem)
    return series


def _file(path: Path) -> DicomSeries:
    if not is_dicom(path):
        raise ReadingError(f"{path}: is no DICOM file.")
    file = read_header(path)
    if path.name.upper() == "DICOMDIR" or file.sop_class == "1.2.840.10008.1.3.10":
        raise ReadingError(
            f"{path}: this is a DICOMDIR, which only lists files; give the folder with the slices of a series."
        )
    kind = other_than_image(file)
    if kind:
        raise ReadingError(f"{path}: it is a DICOM file, but not an image: {kind}.")
    slices, _ = main_slices(path, [file])
    return _checked(file.text("SeriesInstanceUID"), path, slices, ())


def _folder(path: Path) -> DicomSeries:
    found = list_series(path)
    found = [series for series in found if series.uid] or found[:1]
    if len(found) == 1:
        return found[0]
    if found:
        raise ReadingError(f"{path}: holds {_several(found)}.")
    kinds = Counter(read_folder(path).left_out.values())
    here = f"holds no DICOM image ({', '.join(f'{kind}: {n}' for kind, n in kinds.items()) or 'no files'})"
    below = _folders_with_dicom(path)
    if below:
        raise ReadingError(f"{path}: {here}; DICOM files are in its sub-folders, give one: {', '.join(below)}.")
    raise ReadingError(f"{path}: {here}; give a folder with the slices of one series.")


def _one_of(path: Path) -> DicomSeries:
    found = list_series(path.parent) if path.parent.is_dir() else []
    named = [series for series in found if series.uid == path.name]
    if len(named) == 1:
        return named[0]
    if named:
        raise ReadingError(f"{path}: holds {_several(named)}.")
    if found:
        listed = "; ".join(map(str, found))
        raise ReadingError(f"{path}: there is no such file, and no such series in {path.parent}, which holds {listed}.")
    raise FileNotFoundError(f"{path}: there is no such file, folder or series.")


def _several(found: Sequence[DicomSeries]) -> str:
    what = "images" if len({series.uid for series in found}) == 1 else "series"
    return f"{len(found)} {what}; give one of them, such as {found[0].path}: {'; '.join(map(str, found))}"


def _folders_with_dicom(path: Path) -> list[str]:
    """Up to three folders below one that hold DICOM, for a message."""
    found: list[str] = []
    for number, (place, folders, files) in enumerate(os.walk(path)):
        folders.sort()
        if any(is_dicom(Path(place, name)) for name in sorted(files)[:5] if name.upper() != "DICOMDIR"):
            found.append(os.path.relpath(place, path))
        if len(found) == 3 or number == _MOST_FOLDERS:
            break
    return [name for name in found if name != "."]


def _left_out(files: dict[Path, str]) -> tuple[str, ...]:
    """One sentence for each kind of file that was left out, naming the first few."""
    kinds: dict[str, list[Path]] = {}
    for path, kind in files.items():
        kinds.setdefault(kind, []).append(path)
    sentences = []
    for kind, paths in kinds.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        sentences.append(f"{paths[0]}{more}: left out ({kind}).")
    return tuple(sentences)
