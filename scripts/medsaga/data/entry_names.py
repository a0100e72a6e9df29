"""Names of entries of the slice cache: which case, which preprocessing, and the state of its files."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch

from medsaga.reading import suffix_of
from medsaga.reading.dicom import series_files

from .case import files_of, inputs_of

__all__ = ["describe", "identify", "recipe"]

# attributes that MONAI's transforms and readers change as they run
_RUNTIME_STATE = {"R", "filenames", "_tracing"}

# raise it when the content or the layout of an entry changes, or how files are read
_FORMAT = 4


def describe(value: Any) -> Any:
    """What determines the result of a transform, as JSON: class names and parameters, no addresses or random states."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return np.asarray(value).tolist()
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, (set, frozenset)):  # their order changes from process to process
        return sorted(repr(v) for v in value)
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items() if k not in _RUNTIME_STATE}
    if isinstance(value, partial):
        return ["partial", describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, type) or hasattr(value, "__qualname__"):  # a class or function
        name = f"{value.__module__}.{value.__qualname__}"
        if not hasattr(value, "__code__"):
            return name
        # its code, too, because all lambdas of a config have the same name
        cells = [describe(cell.cell_contents) for cell in value.__closure__ or ()]
        return [name, _describe_code(value.__code__), describe(value.__defaults__), cells]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "__dict__"):
        return [name, describe(vars(value))]
    # data types, paths, NumPy's numbers
    return name if " at 0x" in repr(value) else [name, repr(value)]


def _describe_code(code: CodeType) -> list:
    constants = [_describe_code(c) if isinstance(c, CodeType) else describe(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def recipe(preprocessing: Callable, num_classes: int) -> str:
    """A short digest of how a case's entry is made."""
    return _digest([_FORMAT, describe(preprocessing), num_classes])


def identify(case: dict, made_by: str) -> tuple[str, int]:
    """Name of a case's entry, ``CASE-RECIPE-STATE``: another file, or another recipe, makes another entry.

    Args:
        case: as :func:`~medsaga.data.case.files_of` takes it.
        made_by: the :func:`recipe`.

    Returns:
        the name, and the bytes of the case's files.

    Raises:
        FileNotFoundError: an image or label is not there.
    """
    # the label, too, because an image may occur twice, with the labels of two readers
    inputs = [*inputs_of(case).values(), *([case["plane"]] if "plane" in case else [])]
    states = [_state(file) for file in files_of(case)]
    size = sum(size for files in states for _, size, _ in files)
    return f"{_digest(inputs)}-{made_by}-{_digest(states)}", size


def _state(path: str) -> list[tuple[str, int, int]]:
    """Size and time of all files that an image is read from: one file, a folder's files, or one DICOM series of it."""
    files: list[Path] = []
    try:
        found = os.stat(path)  # once for each file: on a network file system each request takes time
    except (FileNotFoundError, NotADirectoryError):
        root = Path(path)
        files = sorted(series_files(root)) if root.parent.is_dir() else []
    else:
        if stat.S_ISDIR(found.st_mode):
            files = sorted(p for p in Path(path).rglob("*") if p.is_file())
        elif suffix_of(path) in (".mhd", ".nhdr"):  # headers; the voxels are in a file beside them
            files = sorted(Path(path).parent.glob(f"{glob.escape(Path(path).stem)}.*"))
        else:
            return [(path, found.st_size, found.st_mtime_ns)]
    if not files:
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    return [(str(file), state.st_size, state.st_mtime_ns) for file in files for state in (file.stat(),)]


def _digest(value: Any, length: int = 16) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
