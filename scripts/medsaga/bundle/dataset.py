"""``dataset.json``: the description of a data set, from which its bundle's files are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .dataset_rules import check_name, problems
from .literals import literal

__all__ = ["check_name", "complete", "read_dataset"]

_NUMBER = (int, float)
_NONE = type(None)
_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "title": (str,),
    "model_name": (str, _NONE),
    "task": (str,),
    "description": (str,),
    "authors": (str,),
    "version": (str,),
    "changelog": (dict,),
    "source": (str,),
    "references": (list,),
    "download": (dict, _NONE),
    "folder": (str, _NONE),
    "dataset_dir": (str, _NONE),
    "test_images": (str,),
    "datalist": (dict,),
    "class_names": (list,),
    "largest_component": (list,),
    "label_values": (list, str, _NONE),
    "channel_names": (list,),
    "sequences": (list, _NONE),
    "colour": (bool,),
    "modality": (str,),
    "data_type": (str,),
    "output_ext": (str,),
    "intensities": (dict,),
    "plane": (str, _NONE),
    "flip": (bool,),
    "encoder": (str,),
    "weights": (str, _NONE),
    "image_size": (int,),
    "checkpointing": (str,),
    "split": (dict, _NONE),
    "test_patients": _NUMBER,
    "val_patients": _NUMBER,
    "train_patients": (int, _NONE),
    "num_slices": (int, _NONE),
    "min_classes": (int,),
    "batch_size": (int,),
    "inference_batch_size": (int,),
    "num_workers": (int,),
    "encoder_lr": _NUMBER,
    "lr": _NUMBER,
    "ema_momentum": (float, _NONE),
    "warmup_steps": (int,),
    "epochs": (int,),
    "val_interval": (int,),
    "eval_metrics": (dict,),
}
# for people to read; a URL in it may have a fragment (#)
_TEXTS = ("title", "model_name", "task", "description", "authors", "changelog", "source", "references", "download")

_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
_KINDS |= {dict: "an object", _NONE: "null"}


def read_dataset(folder: str | Path) -> dict[str, Any]:
    """The fields of a bundle's ``dataset.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON with an object.
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. The bundle's files are written from it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is not JSON: {err}") from err
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_kind(content)}; it must be an object with a data set's fields.")
    return content


def complete(dataset: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A data set's fields with the defaults of those that it leaves out, each of them checked.

    Args:
        dataset: what differs from the defaults.
        defaults: of all fields.

    Raises:
        ValueError: a field that is unknown or missing or has a wrong value. Values that MONAI would evaluate are wrong
            (:func:`~medsaga.bundle.literals.literal`).
    """
    where = f"dataset.json of {dataset.get('name', 'a bundle')}"
    if unknown := sorted(set(dataset) - set(_FIELDS)):
        raise ValueError(f"{where}: there is no field {', '.join(unknown)}; the fields are {', '.join(_FIELDS)}.")
    values = {**defaults, **dataset}
    for field, types in _FIELDS.items():
        value = values[field]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            kinds = " or ".join(_KINDS[kind] for kind in types if (kind, int) != (float, types[0]))
            raise ValueError(f"{where}: {field} is {json.dumps(value)}; it must be {kinds}.")
        _check_strings(value, f"{where}: {field}", text=field in _TEXTS)
    problem = next(problems(values), None)
    if problem:
        raise ValueError(f"{where}: {problem}")
    if "percentiles" in values["intensities"]:
        values["intensities"] = {"floor": None, **values["intensities"]}
    return values


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "something else")


def _check_strings(value: Any, name: str, text: bool) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            # the only key of MONAI's that a field may have is that of the datalist, which is checked separately
            if key.startswith(("_", "$", "%", "@")) and key != "_target_":
                raise ValueError(f"{name} has the key {key!r}; a key must not begin with _, $, % or @.")
            _check_strings(inner, f"{name}, {key}", text)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(inner, name, text)
    elif isinstance(value, str):
        if value.startswith(("$", "%", "@")) or not text:
            literal(value, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number.")
