"""Values that MONAI's configs take as they are."""

from __future__ import annotations

from typing import Any

__all__ = ["literal", "literals"]

_MEANINGS = {"$": "an expression to evaluate", "%": "a macro", "@": "a reference"}


def literal(value: Any, name: str) -> Any:
    """A value that MONAI's ``ConfigParser`` neither evaluates nor changes.

    It evaluates strings that begin with ``$``, looks up those that begin with ``%`` or ``@``, writes ``::`` for ``#``,
    and makes objects of dictionaries with ``_target_``, at any depth of lists and dictionaries. It does not look into
    tuples.

    Args:
        value: of plain types. A list or tuple may hold anything, names of patients and files included.
        name: of the value, for the error.

    Returns:
        the value, with tuples for its lists.

    Raises:
        ValueError: a string or key that would mean something else to MONAI.
        TypeError: another type.
    """
    if isinstance(value, str):
        meaning = _MEANINGS.get(value[:1]) or ("a path into the config" if "#" in value or "::" in value else None)
        if meaning:
            raise ValueError(
                f"{name} is {value!r}, which MONAI would take for {meaning}; it must not begin with $, % or @, and it "
                "must not contain # or ::."
            )
        return value
    if isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(value, dict):
        if reserved := [key for key in value if not isinstance(key, str) or not key.isidentifier() or key[0] == "_"]:
            raise ValueError(
                f"{name} has the key {reserved[0]!r}; a key has letters, digits and _ only, and begins with a letter."
            )
        return {key: literal(inner, f"{name}, {key}") for key, inner in value.items()}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}; it must be a text, a number, true or false, null, a list or a dictionary."
    )


def literals(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides of a bundle's config, each value as a :func:`literal`."""
    return {key: literal(value, key) for key, value in overrides.items()}
