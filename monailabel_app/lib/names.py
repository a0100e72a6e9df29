"""What clients send: names that become parts of paths, and choices; and what they hear of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from pydantic import ValidationError

from medsaga.reading import ReadingError

__all__ = ["chosen", "field_error", "plain_name", "refusing"]

_LONGEST = 200  # bytes; file systems take 255, and suffixes and times are added


def plain_name(name: str, what: str) -> str:
    """A name that is safe as a file's name: no separators, not hidden, no control characters, not too long.

    Args:
        name: from a client.
        what: is named, for the error: "image id", "tag".

    Raises:
        HTTPException: 400 when it is not plain.
    """
    if (
        not name.strip()
        or name.startswith(".")
        or any(c in "/\\" or not c.isprintable() for c in name)
        or len(name.encode("utf-8", "replace")) > _LONGEST
    ):
        raise HTTPException(
            400,
            f"{what} {name[:_LONGEST]!r}: it must be a plain name: not empty, no dot at the start, no / or \\, and at "
            f"most {_LONGEST} bytes.",
        )
    return name


def chosen(request: Mapping[str, Any], option: str) -> Any:
    """An option's value in a request: clients send it, or the whole list of choices, of which the first is meant.

    Returns:
        the value; None where there is none.
    """
    value = request.get(option)
    return value[0] if isinstance(value, list) and value else value or None


@contextmanager
def refusing(path: str | Path, name: str) -> Iterator[None]:
    """Answer 422 where a file cannot be read, under the name by which the client knows it.

    Args:
        path: of the file on the server, which stands in the reason.
        name: is put in its place.

    Raises:
        HTTPException: 422 with the reason.
    """
    try:
        yield
    except ReadingError as err:
        raise HTTPException(422, str(err).replace(str(path), name)) from err


def field_error(err: ValidationError) -> str:
    """What is wrong with the first field that pydantic refuses, by its name."""
    first = err.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
