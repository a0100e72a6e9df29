"""Patterns of the names of files: ``images/{case}`` and ``masks/{case}_mask*``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from medsaga.reading import suffix_of

from .listing import Item

__all__ = ["SPLITS", "Pattern", "find_each", "literal_text"]

# folders of a split, as data sets call them
SPLITS = {
    **dict.fromkeys(("train", "training", "trainval", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "va", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "ts", "te"), "test"),
}

_TOKENS = re.compile(r"\{([a-z][a-z0-9]*)\}|(\*)|(\?)")


@dataclass(frozen=True)
class Pattern:
    """Which files below a folder are meant, and what their names say.

    Attributes:
        text: path below the folder with ``/``. ``{case}``, or another word in braces, stands for a name or a part of
            one, the same at each of its places, and ``{split}`` for one of :data:`SPLITS`. ``*`` stands for anything,
            ``?`` for one character, within one name. With a suffix (``{case}.jpg``) only files of that suffix are
            meant; with ``/`` at the end folders with the slices of a DICOM series.
    """

    text: str

    @cached_property
    def suffix(self) -> str:
        """Of the files that are meant; empty for any."""
        return suffix_of(self.text.rpartition("/")[2])

    @cached_property
    def _stem(self) -> str:
        text = self.text.removeprefix("./")
        return text[: len(text) - len(self.suffix)]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Words in braces, in the order in which they occur first."""
        return tuple(dict.fromkeys(match[1] for match in _TOKENS.finditer(self._stem) if match[1]))

    @cached_property
    def many(self) -> bool:
        """Whether several files of a case may be meant."""
        return "*" in self._stem

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts, end, seen = [], 0, set()
        for match in _TOKENS.finditer(self._stem):
            parts.append(re.escape(self._stem[end : match.start()]))
            name, end = match[1], match.end()
            if name is None:
                parts.append("[^/]*" if match[2] else "[^/]")
            else:
                anything = f"(?i:{'|'.join(SPLITS)})" if name == "split" else "[^/]+?"
                parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{anything})")
                seen.add(name)
        return re.compile("".join([*parts, re.escape(self._stem[end:])]))

    @cached_property
    def last(self) -> str | None:
        """The last part of a key that fits, where that is always the same."""
        last = self._stem.rstrip("/").rpartition("/")[2]
        return None if _TOKENS.search(last) or self._stem.endswith("/") else last

    def match(self, item: Item) -> dict[str, str] | None:
        """What an item's name has in the place of the words in braces; None where it does not fit."""
        if self.suffix and item.suffix != self.suffix:
            return None
        if self.last is not None and not item.key.endswith(self.last):
            return None  # much faster than the expression
        found = self._regex.fullmatch(item.key)
        return None if found is None else found.groupdict()

    def find(self, items: Iterable[Item]) -> list[tuple[dict[str, str], Item]]:
        """All items that fit, with what their names say."""
        return [(found, item) for item in items if (found := self.match(item)) is not None]


def find_each(patterns: Sequence[Pattern], items: Sequence[Item]) -> list[list[tuple[dict[str, str], Item]]]:
    """What fits each of several patterns; a hundred of one name each take little more time than one."""
    by_name: dict[str, list[Item]] = {}
    if sum(pattern.last is not None for pattern in patterns) > 1:
        for item in items:
            by_name.setdefault(item.key.rpartition("/")[2], []).append(item)
    return [
        pattern.find(items if pattern.last is None or not by_name else by_name.get(pattern.last, []))
        for pattern in patterns
    ]


def literal_text(text: str) -> str:
    """A name as a part of a pattern: what means something in patterns or to MONAI becomes ``?``."""
    return re.sub(r"[*?{}#]|::", lambda match: "?" * len(match[0]), text)
