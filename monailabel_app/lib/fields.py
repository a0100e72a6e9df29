"""What a request may say: a closed list of fields for each kind, with their types and ranges.

Anything else is refused with 422 and its name. Nothing of a request reaches a config, a command or a log unchecked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from fastapi import HTTPException
from monailabel.utils.others.generic import device_list
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lib.trainers.methods import CHOOSE, SERVED_METHODS
from medsaga.plain_json import plain_json

__all__ = [
    "BatchFields",
    "InferFields",
    "ScoringFields",
    "StrategyFields",
    "TrainFields",
    "checked",
    "json_object",
    "max_prompts",
]

_DEEPEST = 20
_LONGEST = 200  # characters of a name or tag
_SCRIBBLES = 50  # each becomes up to 20 clicks

# --- JSON -----------------------------------------------------------------------------------------------------------


def json_object(text: str, name: str) -> dict[str, Any]:
    """A JSON object that can be stored and read back everywhere.

    Args:
        text: as the client sent it; the empty one is an empty object.
        name: of the field, for the error.

    Raises:
        HTTPException: 422 for text that is no JSON object, for numbers that JSON does not have (NaN, Infinity, 1e999),
            for text that is not valid Unicode (half of a surrogate pair), or for more than 20 levels.
    """
    try:
        value = json.loads(text or "{}", parse_constant=_no_number)
    except RecursionError:
        raise HTTPException(422, f"{name} is nested too deeply; it may have at most {_DEEPEST} levels.") from None
    except ValueError as err:
        raise HTTPException(422, f"{name} is not valid JSON: {err}.") from err
    return _storable(value, name)


def _storable(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HTTPException(422, f"{name} must be a JSON object, as {{}}.")
    try:
        return plain_json(value, _DEEPEST)
    except ValueError as err:
        raise HTTPException(422, f"{name} cannot be stored: {err}.") from err


def _no_number(word: str) -> None:
    raise ValueError(f"JSON has no number {word}")


# --- types ----------------------------------------------------------------------------------------------------------


def max_prompts() -> int:
    """Most points of one kind that a request may have: ``MEDSAGA_MAX_PROMPTS``, 1000 by default."""
    return int(os.environ.get("MEDSAGA_MAX_PROMPTS", "1000"))


def _first(value: Any) -> Any:
    """The value of an option: clients send it, or the whole list of choices, of which the first is meant."""
    return (value[0] if value else None) if isinstance(value, list) else value


def _devices() -> list[str]:
    numbered = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return list(dict.fromkeys(["cpu", "cuda", *numbered, *device_list()]))


def _known_device(name: str) -> str:
    if name and name not in _devices():  # the empty name is the default
        raise ValueError(f"there is no device {name!r}; known are {', '.join(_devices())}")
    return name


def _few(points: list) -> list:
    if len(points) > max_prompts():
        raise ValueError(f"there are {len(points)} points; the limit is {max_prompts()} (MEDSAGA_MAX_PROMPTS)")
    return points


Text = Annotated[str, Field(max_length=_LONGEST)]
Name = Annotated[Text | None, BeforeValidator(_first)]
Method = Annotated[Literal[(*SERVED_METHODS, CHOOSE)] | None, BeforeValidator(_first)]
Device = Annotated[Annotated[Text, AfterValidator(_known_device)] | None, BeforeValidator(_first)]
Voxel = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Points = Annotated[list[Annotated[list[Voxel], Field(max_length=4)]], AfterValidator(_few)]
Number = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
Numbers = Annotated[list[int], Field(max_length=_LONGEST)]


# --- requests -------------------------------------------------------------------------------------------------------


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    client_id: Text | None = None


class TrainFields(_Fields):
    """``POST /train/NAME``."""

    device: Device = None
    pretrained: bool | None = None
    max_epochs: Annotated[int, Field(ge=0, le=100_000)] | None = None
    method: Method = None


class StrategyFields(_Fields):
    """``POST /activelearning/STRATEGY``."""

    label_tag: Text | None = None
    labels: Annotated[list[Text], Field(max_length=_LONGEST)] | None = None
    model: Text | None = None
    seed: int | Text | None = None
    budget: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] | None = None
    slices: Annotated[int, Field(ge=1, le=1000)] | None = None
    image: Text | None = None


class ScoringFields(_Fields):
    """``POST /scoring/METHOD``."""

    y: Text | None = None
    y_pred: Text | None = None


class _SegmentFields(_Fields):
    device: Device = None
    model_filename: Name = None
    label_tag: Text | None = None
    save_label: bool | None = None
    logging: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = None
    result_extension: Text | None = None
    result_dtype: Number | None = None
    result_compress: bool | None = None
    restore_label_idx: bool | None = None  # OHIF sends it; masks have the classes' numbers anyway


class BatchFields(_SegmentFields):
    """``POST /batch/infer/NAME``."""

    labels: Annotated[list[Text], Field(max_length=_LONGEST)] | None = None
    multi_gpu: bool | None = None
    gpus: Annotated[str, Field(pattern=r"^(all|\d{1,2}(,\d{1,2}){0,15})$")] | None = None
    max_workers: Annotated[int, Field(ge=0, le=256)] | None = None
    max_batch_size: Annotated[int, Field(ge=0)] | None = None


class Scribble(BaseModel):
    """A line inside or outside the object."""

    model_config = ConfigDict(extra="forbid")

    inside: bool
    points: Annotated[Points, Field(min_length=1)]


class InferFields(_SegmentFields):
    """``params`` of ``POST /infer/NAME``."""

    label: Text | None = None
    foreground: Points | None = None
    background: Points | None = None
    scribbles: Annotated[list[Scribble], Field(max_length=_SCRIBBLES)] | None = None
    plane: Annotated[Literal["auto", "axial", "coronal", "sagittal"] | None, BeforeValidator(_first)] = None
    replace: bool | None = None
    roi: Annotated[list[Voxel], Field(max_length=600)] | None = None  # a hundred boxes
    label_info: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None
    # what clients send for models of other kinds, and what has no effect here
    label_prompt: Numbers | None = None
    points: Points | None = None
    point_labels: Numbers | None = None
    reset_state: bool | None = None
    selected_label_name: Text | None = None
    slice: int | None = None


def checked(kind: type[_Fields]) -> Callable[[dict[str, Any] | None, str], dict[str, Any]]:
    """Make a function that takes the fields of a request, and returns those that are set, converted to their types.

    It raises HTTPException 422, naming the field, what is wrong and what would be right.
    """

    def check(given: dict[str, Any] | None, name: str = "params") -> dict[str, Any]:
        given = _storable({} if given is None else given, name)
        try:
            return kind.model_validate(given).model_dump(exclude_none=True)
        except ValidationError as err:
            raise HTTPException(422, "; ".join(_problem(e, kind, name) for e in err.errors()[:5]) + ".") from err

    return check


def _problem(error: Any, kind: type[_Fields], name: str) -> str:
    # after the field's name come positions, and names of types, which mean nothing to the client and are left out
    path = [str(part) for i, part in enumerate(error["loc"]) if i == 0 or isinstance(part, int)]
    field = f"{name}, {'.'.join(path)[:_LONGEST]}"
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        return f"{field}: there is no such field; known are {', '.join(kind.model_fields)}"
    return f"{field}: {error['msg'].removeprefix('Value error, ')}"
