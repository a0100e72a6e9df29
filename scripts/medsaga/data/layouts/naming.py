"""How the images and labels of a folder are named, found out from the names themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .identity import Identity, common_name, identities
from .layout import OtherLayoutError
from .listing import Item
from .patterns import Pattern
from .words import about_images, about_labels

__all__ = ["Naming", "find_naming", "labels_among", "without_slices"]

_SAMPLES = 24  # cases whose files are looked at by name
_TRIED = 6  # cases that the names are tried to be understood by
_ENOUGH = 0.9  # of the images explained: no further try


@dataclass
class Naming:
    """Patterns of the files of cases that have a label.

    Attributes:
        image: pattern by which the cases are told.
        cases: what the names of the images have in the place of its words, of those that have a label.
        sampled: of them, those whose files were looked at.
        images: files of the sampled cases by pattern, of images; where nothing says which are labels, of all.
        labels: the same of labels.
    """

    image: str
    cases: list[dict[str, str]]
    sampled: int
    images: dict[str, list[str]]
    labels: dict[str, list[str]]


def labels_among(items: Sequence[Item]) -> set[Item]:
    """Those whose names, or the names of whose folders, say that they are labels; none where that would be all.

    What all names say (``skin_segmentation/``) says nothing.
    """
    for strict in (True, False):
        found = _named_labels(items, strict)
        if 0 < len(found) < len(items):
            return found
    return set()


def _named_labels(items: Sequence[Item], strict: bool) -> set[Item]:
    folders = {item.key.rpartition("/")[0] for item in items}
    parts = [folder.split("/") if folder else [] for folder in folders]
    same = 0
    while parts and all(len(p) > same for p in parts) and len({p[same] for p in parts}) == 1:
        same += 1
    said: dict[str, bool | None] = {}
    for folder in folders:
        said[folder] = None
        for part in reversed(folder.split("/")[same:]):
            if about_labels(part, strict) or about_images(part):
                said[folder] = about_labels(part, strict)
                break
    stems = [about_labels(item.key.rpartition("/")[2], strict) for item in items]
    by_name = any(stems) and not all(stems)
    return {item for item, stem in zip(items, stems) if (by_name and stem) or said[item.key.rpartition("/")[0]]}


def find_naming(images: Sequence[Item], labels: Sequence[Item], one_root: bool, in_folders: bool = True) -> Naming:
    """Find out how images and labels are named.

    Args:
        images: all images; where nothing says what is a label, all files.
        labels: all labels, or all files as well.
        one_root: both lie below one folder.
        in_folders: files of different cases may lie in different folders; else only files of different kinds do.

    Raises:
        OtherLayoutError: no image and label have a name in common.
    """
    best: Naming | None = None
    told = labels is not images
    varying = frozenset(_varying(images) & {part for item in labels for part in item.key.split("/") if in_folders})
    most = min(len(images), len(labels)) if told else len(images) // 2
    for image in _spread(images, _TRIED):
        tried: set[tuple[str, str]] = set()
        for label in _likely_labels(image, labels, varying):
            for identity in identities(image, label, varying):
                main, of_label = identity.generalise(image.key), identity.generalise(label.key)
                if main is None or of_label is None:
                    continue
                if main == of_label and one_root:
                    main, of_label = main + image.suffix, of_label + label.suffix
                if (main == of_label and one_root) or (main, of_label) in tried:
                    continue
                tried.add((main, of_label))
                for text in dict.fromkeys((of_label, _starred(of_label) if told else of_label)):
                    cases = _labelled(Pattern(main), Pattern(text), images, labels)
                    names = {values["case"] for values, _ in cases}
                    if len(names) == 1 and (len(cases) > 1 or not _alone(image, label, images)):
                        continue  # all images have it in their names: it is no case's own
                    if cases and (best is None or len(cases) > len(best.cases)):
                        best = _naming(main, cases, identity, images, labels, varying)
                if best is not None and len(best.cases) >= _ENOUGH * most:
                    return best
    if best is None:
        raise OtherLayoutError("images and labels that have a name, a part of it or a folder in common")
    return best


def _alone(image: Item, label: Item, images: Sequence[Item]) -> bool:
    """Whether an image and a label may be the only pair: one has the other's name, or a folder of its own."""
    names = [item.key.rstrip("/").rpartition("/")[2] for item in (image, label)]
    sure, core = common_name(*names)
    return sure >= 3 or not core or len(images) == 1


def _starred(pattern: str) -> str:
    """A pattern with ``*`` for what stands in its last part after the last word in braces."""
    folder, slash, last = pattern.rpartition("/")
    return f"{folder}{slash}{last[: last.rfind('}') + 1]}*"


def _labelled(
    pattern: Pattern, label: Pattern, images: Sequence[Item], labels: Sequence[Item]
) -> list[tuple[dict[str, str], Item]]:
    """Images that fit and have a label that does."""
    there = {tuple(values[name] for name in label.names) for values, _ in label.find(labels)}
    if not set(label.names) <= set(pattern.names):
        return []
    found = pattern.find(images)
    return [(values, item) for values, item in found if tuple(values[name] for name in label.names) in there]


def _naming(
    main: str, cases: Sequence[tuple[dict[str, str], Item]], identity: Identity, images, labels, varying: frozenset[str]
) -> Naming:
    samples = _spread(cases, _SAMPLES)
    found: list[dict[str, list[str]]] = [defaultdict(list), defaultdict(list)]
    exact = Pattern(main).suffix != ""
    names = {values["case"] for values, _ in cases}
    before = main.rpartition("/")[2].partition("{case}")
    for values, _ in samples:
        folders = tuple((values[name], name) for _, name in identity.folders)
        own = Identity(values["case"], folders, values.get("split", ""), varying - set(values.values()))
        for source, patterns in zip((images, labels), found):
            for item in source:
                if own.case not in item.key or (before[1] and not own.owns(item.key, before[0], names)):
                    continue
                if text := own.generalise(item.key):
                    patterns[text + item.suffix if exact else text].append(item.path)
    return Naming(main, [values for values, _ in cases], len(samples), *found)


def without_slices(items: Sequence[Item]) -> list[Item]:
    """Images without the single slices of series."""
    series = {item.key for item in items if item.key.endswith("/")}
    return [
        item
        for item in items
        if item.key.endswith("/") or item.suffix not in _SLICES or f"{item.key.rpartition('/')[0]}/" not in series
    ]


_SLICES = ("", ".dcm", ".dicom", ".ima")


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    step = max(1, len(items) // number)
    return list(items[::step][:number])


def _varying(items: Iterable[Item]) -> frozenset[str]:
    """Names of folders at places where not all items have the same."""
    places: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for item in items:
        parts = item.key.rstrip("/").split("/")
        for number, part in enumerate(parts if item.key.endswith("/") else parts[:-1]):
            places[len(parts), number].add(part)
    return frozenset(part for names in places.values() if len(names) > 1 for part in names)


def _likely_labels(image: Item, labels: Sequence[Item], varying: frozenset[str]) -> list[Item]:
    """Labels whose names have most in common with an image's."""
    folders = set(image.key.split("/")[:-1])
    stem = image.key.rstrip("/").rpartition("/")[2]
    scored = []
    for label in labels:
        if label == image:
            continue
        parts = label.key.rstrip("/").split("/")
        sure, core = common_name(stem, parts[-1])
        shared = folders.intersection(parts[:-1])
        own = len(shared & varying)
        scored.append(((sure >= 3 or own > 0, own, sure, len(core), len(shared)), label))
    if not scored:
        return []
    scored.sort(key=lambda pair: pair[0], reverse=True)
    return [label for _, label in scored[:3]]
