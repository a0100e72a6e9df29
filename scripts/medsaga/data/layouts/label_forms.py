"""Which files of a case are its label: one of class numbers, one a class, or one an instance."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from .content import label_values
from .identity import WORDS
from .layout import OtherLayoutError
from .words import about_images, about_labels

__all__ = ["distinct_names", "told_by_content", "with_instances"]

_DECODED = 12  # files of one case
_TRIED = 3  # cases
_MANY = 8  # files in a folder of one case whose names other cases do not have


def told_by_content(patterns: Mapping[str, Sequence[str]]) -> set[str]:
    """Patterns whose files look like labels.

    Args:
        patterns: files by pattern, of which the first few are decoded; of very many patterns only the names are taken.

    Raises:
        OtherLayoutError: some files of a pattern look like labels, and others do not.
    """
    texts = list(patterns)
    if len(texts) > _DECODED:
        return {text for text in texts if not about_images(text.rpartition("/")[2])}
    found = set()
    for text in texts:
        like_labels = {label_values(path) is not None for path in patterns[text][:_TRIED]}
        if len(like_labels) > 1:
            raise OtherLayoutError(f"names that tell images from labels: by their values, {text} are both")
        found |= {text} if like_labels == {True} else set()
    return found


def with_instances(patterns: Mapping[str, Sequence[str]], cases: int) -> dict[str, list[str]]:
    """Patterns of labels, those of several files of one kind as one with ``*``.

    ``{case}_mask`` and ``{case}_mask_1`` are one kind, so are files in a case's folder whose names are those of no
    other case.

    Args:
        patterns: files by pattern.
        cases: how many these are of.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for text in patterns:
        folder, slash, last = text.rpartition("/")
        start = last.rfind("}") + 1
        groups[folder + slash + last[:start]].append(text)
    merged: dict[str, list[str]] = {}
    for stem, texts in groups.items():
        files = [file for text in texts for file in patterns[text]]
        most = max(len(patterns[text]) for text in texts)
        odd = len(texts) > _MANY and all(re.search(r"\d", text[len(stem) :]) for text in texts)
        if len(texts) > 1 and (most * 2 <= cases or (cases == 1 and odd)):
            merged[f"{stem}*"] = files
            continue
        numbered: defaultdict[str, list[str]] = defaultdict(list)
        for text in texts:
            numbered[stem + re.sub(r"[-_ ]*\(?\d+\)?$", "", text[len(stem) :])].append(text)
        for base, same in numbered.items():
            always = all(len(patterns[text]) == cases for text in same)
            if len(same) > 1 and not (always and cases > 1):
                merged[f"{base}*"] = [file for text in same for file in patterns[text]]
            else:
                merged.update({text: list(patterns[text]) for text in same})
    return merged


def distinct_names(texts: Sequence[str]) -> list[str]:
    """What patterns differ by, as names: of ``{case}/liver_mask`` and ``{case}/spleen_mask`` liver and spleen."""
    split = [re.findall(r"\{\w+\}|[A-Za-z0-9]+|[^A-Za-z0-9{}]+", text) for text in texts]
    if len(texts) == 1:
        folder, _, last = texts[0].rpartition("/")
        return [next(filter(None, map(_said, (last, folder.rpartition("/")[2]))), "object")]
    shortest = min(map(len, split))
    start = next((i for i in range(shortest) if len({words[i] for words in split}) > 1), shortest)
    end = next((i for i in range(1, shortest - start + 1) if len({words[-i] for words in split}) > 1), shortest - start)
    names = []
    for words, text in zip(split, texts):
        own = "".join(word for word in words[start : len(words) - end + 1] if not word.startswith("{"))
        names.append(_said(own) or re.sub(r"[\W_]+", " ", own).strip() or text.rpartition("/")[2])
    return names if len(set(names)) == len(names) else [re.sub(r"[{}*?/]+", " ", text).strip() for text in texts]


def _said(text: str) -> str:
    """Words of a name, without those in braces and those that say that it is a label or an image."""
    found = []
    for word in re.split(r"[^\w.+-]|_", re.sub(r"\{\w+\}", " ", text)):
        parts = re.findall(WORDS, word) if about_labels(word) else [word]
        found.append("".join(part for part in parts if part and not about_labels(part)).strip("-."))
    return " ".join(filter(None, found))
