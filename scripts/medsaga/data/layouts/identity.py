"""What the names of an image and of its label have in common: the case, and the folders it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .listing import Item
from .patterns import SPLITS, literal_text
from .words import split_word

__all__ = ["WORDS", "Identity", "common_name", "identities"]


@dataclass(frozen=True)
class Identity:
    """What of one case's names is the case's own.

    Attributes:
        case: name of the case as it stands in the names of its files or folders.
        folders: word in braces by the name of a folder.
        split: the word that says the part of the split, or empty.
        others: names of folders of other cases.
    """

    case: str
    folders: tuple[tuple[str, str], ...]
    split: str
    others: frozenset[str]

    def owns(self, key: str, before: str, cases: set[str]) -> bool:
        """Whether a file is not of another case, by what its name has at the place of the case's.

        Args:
            key: of the file.
            before: what stands before the case's name in names of files.
            cases: all names of cases.
        """
        name = key.rstrip("/").rpartition("/")[2].removeprefix(before)
        ends = [match.end() for match in re.finditer(WORDS, name)]
        found = next((name[:end] for end in reversed(ends) if name[:end] in cases), self.case)
        return found == self.case

    def generalise(self, key: str) -> str | None:
        """A file's pattern, with words in braces for what is the case's own; None for a file of another case."""
        series = key.endswith("/")
        parts = key.rstrip("/").split("/")
        named = dict(self.folders)
        found: list[str] = []
        has_case = False
        for number, part in enumerate(parts):
            folder = number < len(parts) - 1 or series
            word = split_word(part, SPLITS) if folder and self.split else None
            if (folder and part in self.others and not word) or word not in (None, self.split):
                return None
            if part == self.case:
                found.append("{case}")
                has_case = True
            elif folder and part in named:
                found.append("{" + named[part] + "}")
            elif word:
                before, after = re.split(rf"{self.split}(?![a-z])", part, maxsplit=1)
                found.append(literal_text(before) + "{split}" + literal_text(after))
            elif (at := _place(part, self.case)) is not None and (not folder or _is_name(self.case)):
                found.append(literal_text(part[:at]) + "{case}" + literal_text(part[at + len(self.case) :]))
                has_case = True
            else:
                found.append(literal_text(part))
        return "/".join(found) + "/" * series if has_case else None


def _is_name(case: str) -> bool:
    """Whether a case's name is no mere number, so that folders with it are the case's (IMD002_lesion)."""
    return len(case) > 3 and not case.isdigit()


def _place(name: str, case: str) -> int | None:
    """Where the case's name stands in a file's, as a whole word."""
    start = 0
    while (at := name.find(case, start)) >= 0:
        before, after = name[:at][-1:], name[at + len(case) :][:1]
        if not _joined(before, case[:1]) and not _joined(case[-1:], after):
            return at
        start = at + 1
    return None


def _joined(one: str, other: str) -> bool:
    """Whether two characters side by side belong to one word: digits, or letters."""
    return (one.isdigit() and other.isdigit()) or (one.isalpha() and other.isalpha() and not other.isupper())


WORDS = r"\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z0-9]+"


def common_name(one: str, other: str) -> tuple[int, str]:
    """What two names have in common, and how surely it is the case's name.

    Returns:
        4 and the name for equal ones, 3 where one name begins or ends with the other, 2 where they share words with
        a number, 1 where they share words, 0 and nothing else.
    """
    if one == other:
        return 4, one
    short, long = sorted((one, other), key=len)
    if _place(long, short) is not None and (long.startswith(short) or long.endswith(short)):
        return 3, short
    shared = _shared_words(re.findall(WORDS, one), re.findall(WORDS, other)).strip("-_. ()")
    return (2 if re.search(r"\d", shared) else 1 if shared else 0), shared


def _shared_words(one: Sequence[str], other: Sequence[str]) -> str:
    """The longest run of words that two names share."""
    best: Sequence[str] = ()
    lengths = [0] * (len(other) + 1)
    for i, word in enumerate(one):
        lengths = [0] + [lengths[j] + 1 if word == other[j] else 0 for j in range(len(other))]
        longest = max(lengths)
        run = one[i + 1 - longest : i + 1]
        if len("".join(run)) > len("".join(best)):
            best = run
    return "".join(best)


def identities(image: Item, label: Item, varying: frozenset[str]) -> Iterator[Identity]:
    """What may be the case's own in the names of an image and its label, the likeliest first.

    Args:
        image: of a case.
        label: of the same.
        varying: names of folders that are not the same for all images, and have labels in folders of their names.
    """
    folders, stem = _parts(image.key)
    label_folders, label_stem = _parts(label.key)
    _, core = common_name(stem, label_stem)
    split = next((word for part in folders if (word := split_word(part, SPLITS))), "")
    if not any(split_word(part, SPLITS) == split for part in label_folders):
        split = ""
    shared = [part for part in folders if part in label_folders and not (split and split_word(part, SPLITS) == split)]
    own = [part for part in dict.fromkeys(shared) if part in varying]
    folder = own[-1] if own else ""  # of the case, whose files have the same names as those of other cases
    alone = shared[-1] if shared and not varying else stem
    for case, groups in ((core, [p for p in own if p != core]), (folder, own[:-1]), (alone, [])):
        if case:
            named = tuple((folder, "group" if i == 0 else f"group{i + 1}") for i, folder in enumerate(groups))
            yield Identity(case, named, split, varying - {case, *own, *shared})


def _parts(key: str) -> tuple[list[str], str]:
    """Folders and name of an item; a folder with slices is one of the folders and a name, too."""
    parts = key.rstrip("/").split("/")
    return (parts if key.endswith("/") else parts[:-1]), parts[-1]
