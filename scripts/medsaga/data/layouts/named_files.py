"""Images and labels that are told by the names of their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsaga.data.found_images import some
from medsaga.reading import name_without_suffix

from .layout import Case, existing_folder, patient_in
from .listing import Item, list_items
from .patterns import SPLITS, Pattern, find_each

__all__ = ["labelled_files", "named_files_datalist", "unique_names"]

_Values = tuple[str, ...]


def named_files_datalist(
    dataset_dir: str | Path,
    image: str | Sequence[str],
    label: str | Sequence[str],
    classes: Sequence[str] | None = None,
    patient: str | None = None,
    labels_dir: str | Path | None = None,
    unlabelled: str = "refuse",
) -> list[Case]:
    """Labelled cases whose images and labels are told by the names of files and folders.

    A pattern is a path below the folder, without suffix: ``images/{case}`` and ``masks/{case}_mask``. What a word in
    braces stands for has to be the same in image and label; ``{split}`` is the case's part of the split (train, val,
    test and the like), ``{patient}`` its patient. ``*`` stands for anything, ``?`` for one character. A pattern that
    ends in a suffix means files of that suffix, one that ends in ``/`` folders with the slices of a DICOM series.

    Args:
        dataset_dir: the folder.
        image: pattern of the images, or a list of one a sequence, in the order of the channels.
        label: pattern of the labels, of one file a case with class numbers; with ``classes`` a list of one a class.
        classes: names of the classes that the labels are of, one file or, where the pattern has ``*``, any number of
            files a class and case. A case has files of one class at least.
        patient: regular expression whose first group, matched at the start of what the words in braces stand for
            (joined by ``/``), is the patient. None: ``{patient}``, or else each case is a patient of its own.
        labels_dir: folder that the labels' patterns are below; None for ``dataset_dir``.
        unlabelled: ``refuse`` images without a label, or ``leave out``.

    Raises:
        FileNotFoundError: no such folder, no image, an image without label or without one of its sequences.
        ValueError: two files for one name, or a wrong argument.
    """
    if unlabelled not in ("refuse", "leave out"):
        raise ValueError(f"unlabelled is {unlabelled!r}; it must be 'refuse' or 'leave out'.")
    cases, without = labelled_files(dataset_dir, image, label, classes, patient, labels_dir)
    if without and (unlabelled == "refuse" or not cases):
        texts, where = label if isinstance(label, str) else " or ".join(label[:5]), labels_dir or dataset_dir
        number = len(cases) + len(without)
        raise FileNotFoundError(f"{len(without)} of {number} images have no label {texts} in {where}: {some(without)}.")
    return cases


def labelled_files(
    dataset_dir: str | Path,
    image: str | Sequence[str],
    label: str | Sequence[str],
    classes: Sequence[str] | None = None,
    patient: str | None = None,
    labels_dir: str | Path | None = None,
) -> tuple[list[Case], list[str]]:
    """The cases of :func:`named_files_datalist`, whose arguments these are, and images without a label."""
    images, labels = _patterns(image, label, classes)
    folder = existing_folder(dataset_dir, "data set folder")
    items = list_items(folder)
    label_items = items if labels_dir is None else list_items(existing_folder(labels_dir, "folder of the labels"))
    files = _files(items, images)
    label_files = _files(label_items, labels)
    words = images[0].names
    if labels_dir is None:
        _drop_labels(files[0], words, labels, label_files)
    if not files[0]:
        raise FileNotFoundError(f"No image in {folder} has a name such as {images[0].text}.")
    cases: list[Case] = []
    without: list[str] = []
    for identity in files[0]:
        values = dict(zip(words, identity))
        paths = [_of(found, pattern, values) for found, pattern in zip(files, images)]
        of_case = [_of(found, pattern, values) for found, pattern in zip(label_files, labels)]
        path = _one(paths[0], images[0])
        if not any(of_case):
            without.append(path)
            continue
        if absent := [pattern.text for pattern, found in zip(images, paths) if not found]:
            raise FileNotFoundError(f"{path} has no counterpart {absent[0]} in {folder}.")
        sequences = [_one(found, pattern) for found, pattern in zip(paths, images)]
        by_class = {
            name: found if pattern.many else _one(found, pattern)
            for name, found, pattern in zip(classes or [""], of_case, labels)
            if found
        }
        case: Case = {"image": path if isinstance(image, str) else sequences}
        case["label"] = by_class if classes is not None else by_class[""]
        case["patient"] = patient_in("/".join(identity), patient) if patient else values.get("patient", "")
        case["name"] = "_".join(identity) or name_without_suffix(path)
        if "split" in values:
            case["split"] = SPLITS[values["split"].lower()]
        cases.append(case)
    return unique_names(cases), without


def unique_names(cases: list[Case]) -> list[Case]:
    """Cases without their ``name`` where the names of their files tell them apart, and none without a patient."""
    stems = [name_without_suffix(_first(case["image"])) for case in cases]
    unique = max(Counter(stem.casefold() for stem in stems).values(), default=1) == 1
    for case, stem in zip(cases, stems):
        if unique and isinstance(case["image"], str):
            case["name"] = stem
        case["patient"] = case.get("patient") or case["name"]
    for case in cases:
        if unique and isinstance(case["image"], str):
            del case["name"]
    return cases


def _first(image: str | list[str]) -> str:
    return image if isinstance(image, str) else image[0]


def _patterns(image: Any, label: Any, classes: Any) -> tuple[list[Pattern], list[Pattern]]:
    images = [Pattern(text) for text in ([image] if isinstance(image, str) else image)]
    labels = [Pattern(text) for text in ([label] if isinstance(label, str) else label)]
    if classes is None and (len(labels) != 1 or labels[0].many):
        raise ValueError(f"label is {label!r}; for several files, classes must name a class for each pattern.")
    if classes is not None and (len(classes) != len(labels) or len(set(classes)) < len(classes)):
        raise ValueError(
            f"classes is {list(classes)}; it needs {len(labels)} different names, one for each pattern of label."
        )
    for pattern in (*images[1:], *labels):
        if unknown := set(pattern.names) - set(images[0].names):
            raise ValueError(f"{pattern.text} has {{{min(unknown)}}}, which {images[0].text} does not have.")
    return images, labels


def _files(items: Sequence[Item], patterns: Sequence[Pattern]) -> list[dict[_Values, list[str]]]:
    """Files that fit each pattern, by what their names have in the place of its words."""
    by_values: list[dict[_Values, list[str]]] = []
    for pattern, found in zip(patterns, find_each(patterns, items)):
        files: dict[_Values, list[str]] = {}
        for values, item in found:
            files.setdefault(tuple(values[name] for name in pattern.names), []).append(item.path)
        by_values.append(files)
    return by_values


def _of(found: dict[_Values, list[str]], pattern: Pattern, values: dict[str, str]) -> list[str]:
    return found.get(tuple(values[name] for name in pattern.names), [])


def _one(found: Sequence[str], pattern: Pattern) -> str:
    if len(found) > 1:
        raise ValueError(
            f"{found[0]} and {found[1]} have the same name for the pattern {pattern.text}; keep one of them."
        )
    return found[0]


def _drop_labels(
    images: dict[_Values, list[str]],
    words: Sequence[str],
    patterns: Sequence[Pattern],
    labels: Sequence[dict[_Values, list[str]]],
) -> None:
    """Take out what is a label of another image: with ``{case}`` and ``{case}_mask`` each label fits the first, too."""
    used = {
        path
        for identity in images
        for pattern, found in zip(patterns, labels)
        for path in _of(found, pattern, dict(zip(words, identity)))
    }
    for identity, paths in list(images.items()):
        images[identity] = [path for path in paths if path not in used]
        if not images[identity]:
            del images[identity]
