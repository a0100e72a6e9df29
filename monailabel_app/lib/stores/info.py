"""What is noted about images and labels: taken only as it can be read back.

Notes come from clients and from the app's own tasks, and are kept as JSON. The same check runs before they are written
and when the file is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.names import field_error

__all__ = ["checked_info", "read_info"]

_MAX_BYTES = 256 * 1024  # of all notes about one image or label, as JSON
_MAX_DEPTH = 32

_Time = Annotated[float, Field(ge=0, le=253402300799)]  # seconds since 1970, to the end of the year 9999


class _Handed(BaseModel):
    model_config = ConfigDict(strict=True)
    ts: _Time = 0
    client_id: str | None = None


class _Measure(BaseModel):
    model_config = ConfigDict(strict=True)
    of: list[Any]
    by_class: dict[str, float | None]


class _Reserved(BaseModel):
    """The notes that this app reads."""

    model_config = ConfigDict(strict=True)
    ts: _Time = 0
    first_saved: _Time = 0
    name: str = ""
    annotator: str = ""
    user: str | None = None
    client_id: str | None = None
    model: str | None = None
    version: str | None = None
    models: list[str] = []
    voxels: dict[str, int] = {}
    strategy: dict[str, _Handed] = {}
    dice: _Measure | None = None
    hd95: _Measure | None = None
    SeriesInstanceUID: str = ""  # DICOM's


def read_info(info: Any) -> dict[str, Any]:
    """Notes as the store keeps them: numbers of numpy become Python's, anything else that JSON lacks its text.

    Raises:
        ValueError: naming the field that could not be read back, and what would be right.
    """
    if not isinstance(info, Mapping):
        raise ValueError(f"it is {type(info).__name__}; it must be an object of names and values")
    plain = _plain(info, "", 0)
    size = len(json.dumps(plain))
    if size > _MAX_BYTES:
        raise ValueError(f"it takes {size} bytes as JSON; at most {_MAX_BYTES} are kept")
    try:
        _Reserved.model_validate(plain)
    except ValidationError as err:
        raise ValueError(field_error(err)) from err
    return plain


def checked_info(info: Any, what: str) -> dict[str, Any]:
    """The same for notes of a request.

    Args:
        info: as it came.
        what: it is about, for the error.

    Raises:
        HTTPException: 422 naming the field that could not be read back.
    """
    try:
        return read_info(info)
    except ValueError as err:
        raise HTTPException(422, f"The info of {what}: {err}.") from err


def _plain(value: Any, where: str, depth: int) -> Any:
    name = where[:100] or "it"
    if depth > _MAX_DEPTH:
        raise ValueError(f"{name} is nested too deep; at most {_MAX_DEPTH} levels are kept")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} is a number beyond 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; JSON has finite numbers only, use null")
        return float(value)
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{name} holds half of a character (a lone surrogate)")
        return str.__str__(value)  # of an enumeration its value
    if isinstance(value, Mapping):
        names = [_plain(key if isinstance(key, str) else str(key), f"a name in {name}", depth) for key in value]
        return {key: _plain(item, f"{where}.{key}".strip("."), depth + 1) for key, item in zip(names, value.values())}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    return _plain(value.item() if hasattr(value, "item") else str(value), where, depth)
