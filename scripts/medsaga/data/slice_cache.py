"""Preprocessed volumes on disk, from which a slice is one read."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose
from tqdm import tqdm

from medsaga.failures import Failure, failure_of, listed
from medsaga.files import write_json

from .case import files_of, inputs_of
from .entry_names import entry_name, recipe

__all__ = ["CachedCase", "cache_cases", "prepare_cases"]

logger = logging.getLogger(__name__)

_DAY = 24 * 60 * 60  # seconds
_KEPT = 30 * _DAY  # for so long an entry is kept that no run uses
_BUILDING = ".building-"
_ENTRY = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{16}){1,2}(\.json)?")  # two parts: as earlier versions named them


class CachedCase:
    """One preprocessed case: memory-mapped slices, and which classes each slice shows.

    ``images`` is (D, C, H, W) float16: intensities are in [0, 1] after preprocessing, where its step of at most 1/2048
    is finer than the 8 bits of the images that SAM was trained on. ``labels`` is (D, H, W) uint8, and not there in a
    case without a label. ``classes`` is (D, k) bool and small, hence read as a whole; without a label all False.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: np.ndarray = np.load(folder / "classes.npy")
        self.has_label = (folder / "labels.npy").is_file()

    def read(self, index: int) -> dict[str, torch.Tensor]:
        """Slice ``index`` as {"image": (C, H, W) float32, "label": (1, H, W) uint8}, the label where there is one."""
        # mapped anew for each read: an open map would pin its pages and a file handle a case in every worker
        image = np.load(self.folder / "images.npy", mmap_mode="r")[index]
        item = {"image": torch.from_numpy(image.astype(np.float32))}
        if self.has_label:
            label = np.load(self.folder / "labels.npy", mmap_mode="r")[index]
            item["label"] = torch.from_numpy(np.array(label)[None])
        return item


def cache_cases(
    datalist: Sequence[dict],
    preprocessing: Compose,
    num_classes: int,
    cache_dir: str | Path,
    num_workers: int = 0,
) -> list[CachedCase]:
    """Preprocess each case once into ``cache_dir`` and return the cases as memory-mapped slices, in order.

    See :func:`prepare_cases` for what is kept and what is made again.

    Args:
        datalist: cases with the paths ``image`` and ``label``, or ``image`` alone.
        preprocessing: deterministic transforms from these paths to an image (C, H, W[, D]) with intensities in [0, 1]
            and a label (1, H, W[, D]) of class numbers, the slices along the last axis. Where cases have no label, it
            must do without (:func:`~medsaga.data.for_unlabelled`).
        num_classes: including background.
        cache_dir: folder of the cache, made if need be.
        num_workers: processes that build; each holds one volume. 0 builds in this process.

    Raises:
        ValueError: cases that cannot be used, each with its file and what is wrong; the others are cached by then.
    """
    entries, failures = prepare_cases(datalist, (), preprocessing, num_classes, cache_dir, num_workers)
    if failures:
        raise ValueError(f"{len(failures)} of {len(datalist)} cases cannot be used:\n{listed(failures)}")
    return [CachedCase(entry) for entry in entries]


def prepare_cases(
    cached: Sequence[dict],
    checked: Sequence[dict],
    preprocessing: Compose,
    num_classes: int,
    cache_dir: str | Path,
    num_workers: int = 0,
) -> tuple[list[Path], list[Failure]]:
    """Preprocess cases, some to keep their slices and some to know that they can be used, each once.

    A case is preprocessed again when the size or time of its files has changed, which removes its old entry. Entries of
    other preprocessings stay, because another training may use them; what no run has used for 30 days goes. A build
    that was killed goes on where it was. Several processes may build at once.

    Args:
        cached: cases whose slices are kept.
        checked: cases of which a record is kept that they can be used, and no slices.
        preprocessing: as for :func:`cache_cases`.
        num_classes: as there.
        cache_dir: as there.
        num_workers: as there.

    Returns:
        Folders of the ``cached`` cases that can be used, in order, and what is wrong with all that cannot.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    of_case = _tidy(cache_dir)
    made_by = recipe(preprocessing, num_classes)
    entries: list[Path] = []
    failures: list[Failure] = []
    jobs: dict[str, _Job] = {}
    for case, keeps in [(case, True) for case in cached] + [(case, False) for case in checked]:
        try:
            name = entry_name(case, made_by)
        except (OSError, ValueError) as err:  # not there, or no series of its folder
            failures.append(failure_of(err, files_of(case), "cannot be read"))
            continue
        folder, record = cache_dir / name, cache_dir / f"{name}.json"
        if keeps:
            entries.append(folder)
        used = folder if (folder / "classes.npy").is_file() else record if not keeps and record.is_file() else None
        if used is None:
            stale = [path for path in of_case[name.rpartition("-")[0]] if path.name not in (folder.name, record.name)]
            jobs.setdefault(name, _Job(case, preprocessing, num_classes, folder if keeps else record, keeps, stale))
        else:
            with suppress(OSError):  # of a cache that belongs to somebody else
                os.utime(used)
    with tqdm(
        total=len(jobs), desc=f"Preprocessing into {cache_dir}", unit="case", disable=not jobs, dynamic_ncols=True
    ) as progress:
        for failure in _run(list(jobs.values()), num_workers):
            failures += [failure] if failure else []
            progress.update()
    order = {file: place for place, file in enumerate(file for case in (*cached, *checked) for file in files_of(case))}
    failures = sorted({failure.file: failure for failure in failures}.values(), key=lambda failure: order[failure.file])
    return [entry for entry in entries if (entry / "classes.npy").is_file()], failures


@dataclass(frozen=True)
class _Job:
    """A case to be preprocessed into ``entry``: a folder of slices, or a record that it can be used."""

    case: dict
    preprocessing: Callable
    num_classes: int
    entry: Path
    keeps: bool
    stale: list[Path]

    def run(self) -> Failure | None:
        """What is wrong with the case instead of an exception."""
        files = files_of(self.case)
        try:
            arrays = _arrays(self.case, self.preprocessing, self.num_classes)
        except Exception as err:
            return failure_of(err, files, "cannot be read")
        if self.keeps:
            _write(arrays, self.entry)
        else:
            write_json(self.entry, {"files": files})
        for old in self.stale:
            _remove(old)
        return None


def _arrays(case: dict, preprocessing: Callable, num_classes: int) -> dict[str, np.ndarray]:
    """Slices of a case by the names of their files.

    Raises:
        ValueError: intensities outside [0, 1].
    """
    data = preprocessing(inputs_of(case))
    image = np.asarray(data["image"])
    is_volume = image.ndim == 4
    image = np.moveaxis(image, -1, 0) if is_volume else image[None]  # (C, H, W, D) → (D, C, H, W)
    # MONAI's scaling leaves an image as it is whose two percentiles are equal, and NaN or infinity trains nothing
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"{files_of(case)[0]}: intensities from {low:g} to {high:g} after preprocessing, expected 0 to 1. Nearly "
            "all of the image may have one value (then scale it by other percentiles), or the preprocessing does not clip."
        )
    arrays = {"images": image.astype(np.float16), "classes": np.zeros((len(image), num_classes), dtype=bool)}
    if "label" in case:
        label = np.asarray(data["label"])
        label = np.moveaxis(label[0], -1, 0) if is_volume else label
        arrays["labels"] = label.astype(np.uint8)
        arrays["classes"] = np.stack([(label == c).any(axis=(1, 2)) for c in range(num_classes)], axis=1)
    return arrays


def _write(arrays: dict[str, np.ndarray], folder: Path) -> None:
    # written under a temporary name and renamed: a build killed half-way leaves no half entry
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_BUILDING) as building:
        work = Path(building) / "entry"
        work.mkdir()
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array)
        try:
            os.rename(work, folder)
        except OSError:
            if not (folder / "classes.npy").is_file():  # otherwise another process was first, with the same content
                raise


def _tidy(cache_dir: Path) -> dict[str, list[Path]]:
    """Remove what killed builds have left and what no run uses; the other entries by case and recipe."""
    now = time.time()
    of_case: dict[str, list[Path]] = defaultdict(list)
    for path in cache_dir.iterdir():
        building = path.name.startswith(_BUILDING)
        if not building and not _ENTRY.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):  # another process may tidy, too
            if now - path.stat().st_mtime > (_DAY if building else _KEPT):
                _remove(path)
            elif not building:
                of_case[path.name.rpartition("-")[0]].append(path)
    return of_case


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _run(jobs: list[_Job], num_workers: int) -> Iterator[Failure | None]:
    if num_workers < 1 or len(jobs) < 2:
        yield from (job.run() for job in jobs)
        return
    # spawned, not forked: a fork of a process whose OpenMP threads have run can hang
    context = multiprocessing.get_context("spawn")
    workers, done = min(num_workers, len(jobs)), 0
    while done < len(jobs):
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                for failure in pool.map(_Job.run, jobs[done:]):
                    yield failure
                    done += 1
            except BrokenProcessPool:
                if workers == 1:  # then it is this case that ended the process
                    file = files_of(jobs[done].case)[0]
                    yield Failure(file, "reading it ended the process, most likely for want of memory.")
                    done += 1
                workers = 1
