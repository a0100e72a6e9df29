"""Preprocessed volumes on disk, stored so that a slice takes one read."""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from monai.transforms import Compose
from tqdm import tqdm

from medsaga.failures import Failure, failure_of, listed, nothing_can_be_written

from .cache_build import FULL, Maker, Task, make_all
from .cache_records import Records, at_once
from .cache_room import LIMIT, Room
from .cache_run import Run
from .cached_case import CachedCase
from .case import files_of
from .case_slices import trying_again
from .entry_names import identify, recipe

__all__ = ["cache_cases", "prepare_cases"]

logger = logging.getLogger(__name__)


def cache_cases(
    datalist: Sequence[dict],
    preprocessing: Compose,
    num_classes: int,
    cache_dir: str | Path,
    num_workers: int = 0,
) -> list[CachedCase]:
    """Preprocess each case once into ``cache_dir`` and return the cases, in order.

    See :func:`prepare_cases` for what is kept and what is made again.

    Args:
        datalist: cases with the paths ``image`` and ``label``, or ``image`` alone.
        preprocessing: deterministic transforms from these paths to an image (C, H, W[, D]) with intensities in [0, 1]
            and a label (1, H, W[, D]) of class numbers, the slices along the last axis. Where cases have no label, it
            must work without one (:func:`~medsaga.data.for_unlabelled`).
        num_classes: including background.
        cache_dir: folder of the cache, made if need be.
        num_workers: processes that preprocess, see :func:`~medsaga.data.cache_build.make_all`.

    Raises:
        ValueError: cases that cannot be used, each with its file and what is wrong; the others are cached by then.
        OSError: the disk is full.
    """
    cases, failures = prepare_cases(datalist, (), preprocessing, num_classes, cache_dir, num_workers)
    if failures:
        raise ValueError(f"{len(failures)} of {len(datalist)} cases cannot be used:\n{listed(failures)}")
    return cases


def prepare_cases(
    cached: Sequence[dict],
    checked: Sequence[dict],
    preprocessing: Compose,
    num_classes: int,
    cache_dir: str | Path,
    num_workers: int = 0,
) -> tuple[list[CachedCase], list[Failure]]:
    """Preprocess each case once: some to keep their slices, others only to know that they can be used.

    A case is preprocessed again when the size or time of its files has changed. Its old entry is then removed, unless a
    running process needs it. Entries of other preprocessings stay as long as there is room
    (:class:`~medsaga.data.cache_room.Room`), because another training may use them. Where there is no room for cases of
    this call, their slices are made when they are read. A build that was killed continues where it stopped. Several
    processes may build at once.

    Args:
        cached: cases whose slices are kept.
        checked: cases of which only a record is kept that they can be used, without slices.
        preprocessing: as for :func:`cache_cases`.
        num_classes: as there.
        cache_dir: as there.
        num_workers: as there.

    Returns:
        The ``cached`` cases that can be used, in order, and what is wrong with all that cannot.

    Raises:
        OSError: the disk is full.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    made_by = recipe(preprocessing, num_classes)
    named, failures = _named([*cached, *checked], made_by)
    kept = {named[i][0] for i in range(len(cached)) if i in named}
    run = Run(cache_dir)
    run.uses(kept)  # before looking which entries exist, so that none is removed before it is read
    room, records = Room(cache_dir), Records(cache_dir, made_by)
    known = [name for name, _ in named.values() if room.has(name, slices=False)]
    records.read(known)
    room.touch(known)

    of_case = defaultdict(list)
    for name in room.entries:
        of_case[name.rpartition("-")[0]].append(name)
    tasks: dict[str, Task] = {}
    left = room.left()
    for index, (name, size) in named.items():
        if name in tasks or (name in records.known and room.has(name, slices=name in kept)):
            continue
        if name in records.known:  # was read, and its slices were not kept
            left -= records.known[name]["bytes"]
            if left < 0:
                continue
        stale = {*of_case[name.rpartition("-")[0]]} - {name} - room.in_use
        case = cached[index] if index < len(cached) else checked[index - len(cached)]
        tasks[name] = Task(case, name, name in kept, tuple(stale), size)
    maker = Maker(cache_dir, run.folder, preprocessing, num_classes)
    failures += _make(maker, list(tasks.values()), num_workers, room, records)
    records.write(room.entries)

    cases = [
        CachedCase(case, named[index][0], records.known[named[index][0]], maker, run)
        for index, case in enumerate(cached)
        if index in named and named[index][0] in records.known
    ]
    _warn_of_missing(cases, room, records)
    order = {file: place for place, file in enumerate(file for case in (*cached, *checked) for file in files_of(case))}
    failures = sorted({failure.file: failure for failure in failures}.values(), key=lambda failure: order[failure.file])
    return cases, failures


def _named(cases: Sequence[dict], made_by: str) -> tuple[dict[int, tuple[str, int]], list[Failure]]:
    """Names of entries and sizes of files by the number of the case, and the cases that are not there."""

    def look(case: dict) -> tuple[str, int] | Failure:
        try:
            return trying_again(partial(identify, case, made_by))
        except (OSError, ValueError) as err:  # not there, or no series of its folder
            return failure_of(err, files_of(case), "cannot be read")

    found = at_once(look, cases)
    named = {index: name for index, name in enumerate(found) if not isinstance(name, Failure)}
    return named, [failure for failure in found if isinstance(failure, Failure)]


def _make(maker: Maker, tasks: list[Task], num_workers: int, room: Room, records: Records) -> list[Failure]:
    if tasks and maker.run is None:
        raise PermissionError(
            f"{maker.cache_dir}: cannot be written to, and {len(tasks)} cases are not in it. Name another folder with "
            "--cache_dir FOLDER."
        )
    failures = []
    name = f"Preprocessing into {maker.cache_dir}"
    try:
        with tqdm(total=len(tasks), desc=name, unit="case", disable=not tasks, dynamic_ncols=True) as progress:
            for task, done in make_all(maker, tasks, num_workers):
                if done.failure is not None:
                    failures.append(done.failure)
                else:
                    records.known[task.name] = done.record
                    if done.written and not room.add(task.name, done.written):
                        (maker.run / FULL).touch()
                progress.update()
    except OSError as err:
        if not nothing_can_be_written(err):
            raise
        raise OSError(
            err.errno,
            f"{os.strerror(err.errno)}: {maker.cache_dir} cannot hold the slices of all cases; the files in it are "
            f"complete. {shutil.disk_usage(maker.cache_dir).free / 1e9:.1f} GB are free. Make room, name another "
            f"folder with --cache_dir FOLDER, or let the cache take fewer gigabytes with {LIMIT}",
        ) from err
    return failures


def _warn_of_missing(cases: Sequence[CachedCase], room: Room, records: Records) -> None:
    missing = {case.name for case in cases if room.entries[case.name].size is None}
    if missing:
        size = {name: records.known[name]["bytes"] for name in {case.name for case in cases}}
        logger.warning(
            f"The slices of {len(missing)} of {len(size)} training cases do not fit into {room.cache_dir}: such a case "
            f"is preprocessed anew for each slice that is read, which is slow. All slices would take "
            f"{sum(size.values()) / 1e9:.3g} GB; the cache may take {room.limit / 1e9:.3g} GB. Make room, name a "
            f"folder of another disk with --cache_dir FOLDER, or set {LIMIT}."
        )
