"""Notes about images and labels: accepted only if they can be read back.

Notes come from clients and from the app's own tasks, and are kept as JSON. The same check runs before they are written
and when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.names import field_error
from medsaga.plain_json import plain_json

__all__ = ["checked_info", "read_info"]

_MAX_BYTES = 256 * 1024  # of all notes about one image or label, as JSON
_DEEPEST = 32

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
    labelled_slices: list[int] | None = None
    strategy: dict[str, _Handed] = {}
    dice: _Measure | None = None
    hd95: _Measure | None = None
    SeriesInstanceUID: str = ""  # DICOM's


def read_info(info: Any) -> dict[str, Any]:
    """Notes as the store keeps them: numbers of numpy become Python's, other values that JSON lacks become text.

    Raises:
        ValueError: naming the field that could not be read back, and what would be right.
    """
    if not isinstance(info, Mapping):
        raise ValueError(f"it is of type {type(info).__name__}; it must be an object of names and values")
    plain = plain_json(info, _DEEPEST)
    size = len(json.dumps(plain))
    if size > _MAX_BYTES:
        raise ValueError(f"it has {size} bytes as JSON; at most {_MAX_BYTES} can be kept")
    try:
        _Reserved.model_validate(plain)
    except ValidationError as err:
        raise ValueError(field_error(err)) from err
    return plain


def checked_info(info: Any, what: str) -> dict[str, Any]:
    """Check and convert the notes of a request in the same way.

    Args:
        info: as it came.
        what: image or label that the notes are about, for the error.

    Raises:
        HTTPException: 422 naming the field that could not be read back.
    """
    try:
        return read_info(info)
    except ValueError as err:
        raise HTTPException(422, f"The info of {what}: {err}.") from err
