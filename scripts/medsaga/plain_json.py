"""Values that can be written as JSON and read back everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["plain_json"]


def plain_json(value: Any, deepest: int) -> Any:
    """A value as JSON has it: numbers of numpy become Python's, other values that JSON lacks become text.

    Args:
        value: of a request, or of this app.
        deepest: most levels of lists and objects.

    Raises:
        ValueError: naming the field that could not be read back, and what is wrong with it: NaN and infinity, numbers
            beyond 64 bits, half of a surrogate pair, too many levels.
    """
    try:
        return _plain(value, "", deepest)
    except _TooDeepError as err:
        raise ValueError(f"{err} is nested too deeply; at most {deepest} levels are kept") from None


class _TooDeepError(Exception):
    """With the name of the field."""


def _plain(value: Any, where: str, levels: int) -> Any:
    name = where[:100] or "it"
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
    if isinstance(value, (Mapping, list, tuple)) and levels == 0:
        raise _TooDeepError(name)
    if isinstance(value, Mapping):
        names = [_plain(key if isinstance(key, str) else str(key), f"a name in {name}", levels) for key in value]
        return {key: _plain(item, f"{where}.{key}".strip("."), levels - 1) for key, item in zip(names, value.values())}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", levels - 1) for index, item in enumerate(value)]
    return _plain(value.item() if hasattr(value, "item") else str(value), where, levels)
