"""Preprocessed volumes on disk, from which a slice is one read."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from tqdm import tqdm

__all__ = ["CachedCase", "cache_cases"]

logger = logging.getLogger(__name__)

# attributes that MONAI's transforms and readers change as they run
_RUNTIME_STATE = {"R", "filenames", "_tracing"}

# raise it when the content or the layout of the files below changes
_FORMAT = 1


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


def _describe(value: Any) -> Any:
    """What of a transform determines its result, as JSON: class names and parameters, no addresses or random states."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return np.asarray(value).tolist()
    if isinstance(value, (list, tuple)):
        return [_describe(v) for v in value]
    if isinstance(value, (set, frozenset)):  # their order changes from process to process
        return sorted(repr(v) for v in value)
    if isinstance(value, dict):
        return {str(k): _describe(v) for k, v in value.items() if k not in _RUNTIME_STATE}
    if isinstance(value, partial):
        return ["partial", _describe(value.func), _describe(value.args), _describe(value.keywords)]
    if isinstance(value, type) or hasattr(value, "__qualname__"):  # a class or function
        name = f"{value.__module__}.{value.__qualname__}"
        if not hasattr(value, "__code__"):
            return name
        # what it does, too: all lambdas of a config have the same name
        cells = [_describe(cell.cell_contents) for cell in value.__closure__ or ()]
        return [name, _describe_code(value.__code__), _describe(value.__defaults__), cells]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "__dict__"):
        return [name, _describe(vars(value))]
    # data types, paths, NumPy's numbers
    return name if " at 0x" in repr(value) else [name, repr(value)]


def _describe_code(code: CodeType) -> list:
    constants = [_describe_code(c) if isinstance(c, CodeType) else _describe(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _file_state(path: str) -> list:
    """Size and time of a file, or of every file of a folder (a DICOM series)."""
    root = Path(path)
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _digest(value: Any, length: int = 16) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def _files(case: dict) -> dict[str, str]:
    """Paths of a case's image and, where it has one, its label."""
    return {key: str(case[key]) for key in ("image", "label") if key in case}


def _entry_name(case: dict, description: Any, num_classes: int) -> str:
    files = _files(case)
    for key, path in files.items():
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such {key}.")
    state = [_file_state(path) for path in files.values()]
    # the first part finds the entries of a case again when its files or the preprocessing have changed; the label is
    # in it because an image may come twice, with the labels of two readers
    recipe = [_FORMAT, state, description, num_classes]
    return f"{_digest(list(files.values()))}-{_digest(recipe)}"


def _build(case: dict, preprocessing: Callable, num_classes: int, folder: Path) -> str | None:
    """Preprocess one case into ``folder``; the text of what is wrong with the case instead of an exception."""
    files = _files(case)
    try:
        data = preprocessing(dict(files))
    except Exception as err:
        cause = err
        while cause.__cause__ is not None:  # MONAI wraps what a transform raises
            cause = cause.__cause__
        if any(path in str(cause) for path in files.values()) and len(str(cause)) < 1000:
            return str(cause)
        reason = (str(cause).strip() or repr(cause)).splitlines()[0]
        return f"{' or its label '.join(files.values())} cannot be read: {reason}"
    image = np.asarray(data["image"])
    is_volume = image.ndim == 4
    image = np.moveaxis(image, -1, 0) if is_volume else image[None]  # (C, H, W, D) → (D, C, H, W)
    # MONAI's scaling leaves an image as it is whose two percentiles are equal, and NaN or infinity trains nothing
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        return (
            f"{case['image']}: intensities from {low:g} to {high:g} after preprocessing, expected 0 to 1. Nearly all "
            "of the image may have one value (then scale it by other percentiles), or the preprocessing does not clip."
        )
    arrays = {"images": image.astype(np.float16), "classes": np.zeros((len(image), num_classes), dtype=bool)}
    if "label" in files:
        label = np.asarray(data["label"])
        label = np.moveaxis(label[0], -1, 0) if is_volume else label
        arrays["labels"] = label.astype(np.uint8)
        arrays["classes"] = np.stack([(label == c).any(axis=(1, 2)) for c in range(num_classes)], axis=1)
    # written under a temporary name and renamed: a build killed half-way leaves no half entry
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as building:
        work = Path(building) / "entry"
        work.mkdir()
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array)
        try:
            os.rename(work, folder)
        except OSError:
            if not (folder / "classes.npy").is_file():  # otherwise another process was first, with the same content
                raise
    for old in folder.parent.glob(f"{folder.name.split('-')[0]}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return None


def cache_cases(
    datalist: Sequence[dict],
    preprocessing: Compose,
    num_classes: int,
    cache_dir: str | Path,
    num_workers: int = 0,
) -> list[CachedCase]:
    """Preprocess each case once into ``cache_dir`` and return the cases as memory-mapped slices, in order.

    A case is preprocessed again when the size or time of its files, or a parameter of the preprocessing, has changed;
    its old entry is then removed. A build that was killed goes on where it was. Several processes may build at once.

    Args:
        datalist: cases with the paths ``image`` and ``label``, or ``image`` alone.
        preprocessing: deterministic transforms from these paths to an image (C, H, W[, D]) with intensities in [0, 1]
            and a label (1, H, W[, D]) of class numbers, the slices along the last axis. Where cases have no label, it
            must do without (:func:`~medsaga.data.for_unlabelled`).
        num_classes: including background.
        cache_dir: folder of the cache, made if need be.
        num_workers: processes that build; each holds one volume. 0 builds in this process.

    Raises:
        FileNotFoundError: an image or label is not there.
        ValueError: cases that cannot be used, each with its file and what is wrong; the others are cached by then.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    description = _describe(preprocessing)  # once, as it is the same for every case
    folders = [cache_dir / _entry_name(case, description, num_classes) for case in datalist]
    todo = {folder: case for folder, case in zip(folders, datalist) if not (folder / "classes.npy").is_file()}
    problems: list[str] = []
    if todo:
        jobs = [(case, preprocessing, num_classes, folder) for folder, case in todo.items()]
        with tqdm(total=len(jobs), desc=f"Preprocessing into {cache_dir}", unit="case") as progress:
            for problem in _run_jobs(jobs, num_workers):
                problems += [problem] if problem else []
                progress.update()
    if problems:
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        listed = "\n".join(problems[:10])
        raise ValueError(f"{len(problems)} of {len(datalist)} cases cannot be used:\n{listed}{more}")
    return [CachedCase(folder) for folder in folders]


def _run_jobs(jobs: list[tuple], num_workers: int):
    if num_workers < 1 or len(jobs) < 2:
        yield from (_build(*job) for job in jobs)
        return
    # spawned, not forked: a fork of a process whose OpenMP threads have run can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(_build, *zip(*jobs))
