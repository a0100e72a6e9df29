"""Rules for the values of a ``dataset.json``, beyond their types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["check_name", "problems"]

_BUNDLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_DATALIST = re.compile(r"medsaga\.data\.[a-z_0-9]+_datalist")
_FOLDER = re.compile(r"[\w .()+,=-]+(/[\w .()+,=-]+)*")  # goes into an expression, between quotes


def check_name(name: str) -> None:
    """Refuse a name that no bundle can have: it names a folder, and is put between quotes in an expression.

    Raises:
        ValueError: naming the allowed characters.
    """
    if not _BUNDLE_NAME.fullmatch(name):
        raise ValueError(f"name is {name!r}; a bundle's name has letters, digits and _ only, and begins with a letter.")


def problems(d: dict[str, Any]) -> Iterator[str]:
    """What is wrong with fields whose types are right, a sentence each.

    Args:
        d: all fields of a ``dataset.json``.
    """
    try:
        check_name(d["name"])
    except ValueError as err:
        yield str(err)
    if (d["folder"] is None) == (d["dataset_dir"] is None):
        yield "give either folder (below $MEDSAGA_DATA) or dataset_dir (a path), not both."
    for field in ("folder", "test_images"):
        path = d[field]
        if path and (not _FOLDER.fullmatch(path) or ".." in path.split("/")):
            yield f"{field} is {path!r}; it must be a relative path of plain names, like 'Task04_Hippocampus/imagesTs'."
    if not _DATALIST.fullmatch(str(d["datalist"].get("_target_"))):
        yield f"datalist has _target_ {d['datalist'].get('_target_')!r}; it must be one of medsaga.data's datalists."
    if "dataset_dir" in d["datalist"]:
        yield "datalist has the key dataset_dir; remove it there, because dataset_dir is a field of its own."
    for field, least in (("class_names", 2), ("channel_names", 1)):
        names = d[field]
        if len(names) < least or len(set(map(str, names))) < len(names) or not all(_is_name(name) for name in names):
            yield f"{field} is {names!r}; it must be {least} or more different names."
    if unknown := [name for name in d["largest_component"] if name not in d["class_names"][1:]]:
        yield f"largest_component has {unknown!r}; it must have names from class_names, without the background."
    if d["sequences"] is not None and (
        len(d["sequences"]) != len(d["channel_names"]) or not all(_is_name(end) for end in d["sequences"])
    ):
        yield (
            f"sequences is {d['sequences']!r}; for each of channel_names it must have the text with which the names of "
            "the sequence's files end."
        )
    if d["split"] is not None and (
        set(d["split"]) != {"train", "validation", "test"} or not all(isinstance(p, list) for p in d["split"].values())
    ):
        yield "split must have three lists of patients: train, validation and test. A list may be empty."
    yield from _download_problems(d["download"])
    yield from _label_problems(d["label_values"], len(d["class_names"]))
    yield from _intensity_problems(d["intensities"])
    for field in ("image_size", "batch_size", "inference_batch_size", "epochs", "val_interval"):
        if d[field] < 1:
            yield f"{field} is {d[field]}; it must be 1 or more."
    if d["ema_momentum"] is not None and not 0 < d["ema_momentum"] < 1:
        yield f"ema_momentum is {d['ema_momentum']}; it must be above 0 and below 1, or null for no average of weights."


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _label_problems(values: Any, num_classes: int) -> Iterator[str]:
    if values is None or values == "instances":
        if values and num_classes != 2:
            yield (
                f'label_values "instances" makes one class of all numbers, but class_names has {num_classes - 1} '
                "besides background."
            )
        return
    numbers = [n for v in values for n in (v if isinstance(v, list) else [v])] if isinstance(values, list) else None
    if numbers is None or len(values) not in (num_classes - 1, num_classes) or not all(type(n) is int for n in numbers):
        yield (
            f'label_values is {json.dumps(values)}; it must be null, "instances", or a list with the number (or the '
            "list of numbers) that labels have for each class. The background's number comes first or is left out."
        )
    elif len(set(numbers)) < len(numbers):
        yield f"label_values is {json.dumps(values)}; it names a number twice."


def _download_problems(download: dict[str, Any] | None) -> Iterator[str]:
    files = [] if download is None else download.get("files", [download] if "url" in download else [])
    keys = set() if download is None else set(download) - {"page", "licence", "files", "url", "sha256", "md5"}
    right = isinstance(files, list) and all(isinstance(file, dict) and "url" in file for file in files)
    if keys or not right or (download is not None and not {"page", "licence"} <= set(download)):
        yield (
            "download must have the keys page and licence. If there is a public address, it also has url (and sha256 "
            "or md5), or files: a list of objects with these keys. Other keys are not allowed."
        )


def _intensity_problems(intensities: dict[str, Any]) -> Iterator[str]:
    keys = set(intensities)
    limits = intensities.get("range", intensities.get("percentiles"))
    if keys - {"percentiles", "floor"} and keys != {"range"}:
        limits = None
    right = isinstance(limits, list) and len(limits) == 2 and all(_is_number(limit) for limit in limits)
    if not right or limits[0] >= limits[1] or not _is_number(intensities.get("floor") or 0):
        yield (
            f'intensities is {json.dumps(intensities)}; it must be {{"range": [lowest, highest]}} or {{"percentiles": '
            '[lower, upper], "floor": a value or null}.'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
