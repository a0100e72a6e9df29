"""Which of a folder's files are images and which labels, where only names and contents tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsaga.data.case import files_of
from medsaga.data.found_images import some
from medsaga.reading import PICTURES, suffix_of
from medsaga.reading.names import JPEGS

from .content import label_values
from .label_forms import distinct_names, told_by_content, with_instances
from .layout import Case, Layout, OtherLayoutError, existing_folder, layout_of
from .listing import Item, list_items
from .named_files import labelled_files, named_files_datalist
from .naming import Naming, find_naming, labels_among, without_slices
from .patients import patient_rule
from .patterns import SPLITS, Pattern
from .words import split_word

__all__ = ["find_named_files"]

_READERS = re.compile(r"(?i)[-_ ]?(?:annotator|expert|grader|observer|radiologist|rater|reader)[-_ ]?[a-z0-9]+")
_MOST_SEQUENCES = 12  # files of one case that are decoded


def find_named_files(folder: Path, labels: Path | None = None) -> Layout:
    """Images and labels whose names, or the names of whose folders, have something in common.

    Args:
        folder: of the images.
        labels: that of the labels; None where they are in ``folder``.

    Raises:
        OtherLayoutError: there are no two files with something in common.
        ValueError: it cannot be said which file is the label.
    """
    if not folder.is_dir():
        raise OtherLayoutError("a folder of images and labels")
    items = list_items(folder)
    if not items:
        raise OtherLayoutError("an image of a format that is read")
    images = without_slices(items)
    if labels is not None:
        told = list_items(existing_folder(labels, "folder of labels"))
        if not told:
            raise FileNotFoundError(f"{labels}: there is no label in it of a format that is read.")
    else:
        named = labels_among(images)
        told = [item for item in images if item in named]
        images = [item for item in images if item not in named]
        told = told or images  # all may be either
    if told is not images:
        return _Choice(folder, labels, images, _naming(items, images, told, labels is None), False).layout()
    try:
        return _Choice(folder, None, images, find_naming(images, images, True), True).layout()
    except OtherLayoutError:
        return _Choice(folder, None, images, find_naming(images, images, True, in_folders=False), True).layout()


def _naming(items: Sequence[Item], images: list[Item], labels: list[Item], one_root: bool) -> Naming:
    try:
        return find_naming(images, labels, one_root)
    except OtherLayoutError:
        files = [item for item in items if not item.key.endswith("/") and item not in set(labels)]
        if len(files) == len(images):
            raise
        return find_naming(files, labels, one_root)  # X-rays: each DICOM file by itself


class _Choice:
    """What is taken for image, sequences, label and classes."""

    def __init__(
        self, folder: Path, labels_dir: Path | None, items: list[Item], naming: Naming, by_content: bool
    ) -> None:
        self.folder, self.labels_dir, self.items = folder, labels_dir, items
        self.notes: list[str] = []
        self.cases, self.found = naming.sampled, naming.cases
        images, labels = dict(naming.images), dict(naming.labels)
        if by_content:
            found = told_by_content(images)
            labels = {text: images[text] for text in images if text in found}
            if not labels or len(labels) == len(images):
                kind = "all" if labels else "none"
                raise OtherLayoutError(
                    f"a name that says which file is the label, and {kind} of the files look like one"
                )
            images = {text: files for text, files in images.items() if text not in found}
            self.notes.append(f"{some(sorted(labels))} are labels by their values: no name says so.")
        self.images = self._sequences(images, labels, naming.image)
        self.labels = self._one_reader(with_instances(labels, self.cases))

    def _sequences(self, images: dict[str, list[str]], labels: dict[str, list[str]], main: str) -> list[str]:
        complete = {text: files for text, files in images.items() if len(files) >= self.cases}
        if len(complete) > 1:
            volumes = {text: f for text, f in complete.items() if suffix_of(f[0]) not in PICTURES}
            complete = volumes or complete
        if len(complete) > 1:
            like_labels = told_by_content(complete) if len(complete) <= _MOST_SEQUENCES else set()
            if like_labels and len(like_labels) < len(complete):
                self.notes.append(f"{some(sorted(like_labels))} are labels, too, by their values.")
                labels.update({text: complete.pop(text) for text in like_labels})
        if not complete:
            complete = {main: images.get(main, [])}
        chosen = sorted(complete)
        # sequences lie side by side: the app and inference find them beside the first
        first = main if main in complete else chosen[0]
        beside = [text for text in chosen if text.rpartition("/")[0] == first.rpartition("/")[0]]
        if left_out := sorted(set(images) - set(beside)):
            self.notes.append(f"{some(left_out)} are left out: not there for every case, or not beside {first}.")
        return beside

    def _one_reader(self, labels: dict[str, list[str]]) -> dict[str, list[str]]:
        """Of labels of the same by several readers those of the first."""
        texts = sorted(labels)
        if len(texts) < 2 or len({_READERS.sub("", text) for text in texts}) > 1:
            return labels
        self.notes.append(f"Several readers made labels: {texts[0]} is taken, {some(texts[1:])} are left out.")
        return {texts[0]: labels[texts[0]]}

    def layout(self) -> Layout:
        label_texts = sorted(self.labels)
        classes: list[str] | None = None
        if len(label_texts) > 1 or "*" in label_texts[0]:
            classes = distinct_names(label_texts)
            self._check_classes(label_texts)
        texts = self._plain([*self.images, *label_texts])
        images, labels = texts[: len(self.images)], texts[len(self.images) :]
        arguments: dict[str, Any] = {"image": images if len(images) > 1 else images[0]}
        arguments["label"] = labels[0] if classes is None else labels
        if classes is not None:
            arguments["classes"] = classes
            self.notes.append(
                f"Each {'object' if '*' in labels[0] else 'class'} has a file of its own: {some(classes)}."
            )
        if self.labels_dir is not None:
            arguments["labels_dir"] = str(self.labels_dir)
        arguments |= self._patient(images[0])
        cases, without = labelled_files(self.folder, **arguments)
        if without:
            arguments["unlabelled"] = "leave out"
            number = len(cases) + len(without)
            self.notes.append(f"{len(without)} of {number} images {images[0]} have no label and are left out.")
        ends = _ends(self.images)
        if len(images) > 1 and ends is None:
            self.notes.append(
                "The sequences' names do not differ at their ends: images to segment must name all files."
            )
        return layout_of(
            self._name(images[0], labels[0]),
            named_files_datalist,
            self.folder,
            arguments,
            cases,
            classes=None if classes is None else {name: value for value, name in enumerate(classes, 1)},
            channel_names=tuple(distinct_names(self.images)) if len(images) > 1 else ("image",),
            sequences=ends if len(images) > 1 else None,
            test_images=self._test_images(cases),
            notes=tuple(self.notes),
        )

    def _check_classes(self, texts: Sequence[str]) -> None:
        first = {text: self.labels[text][0] for text in texts[:_MOST_SEQUENCES]}
        several = [
            text
            for text, path in first.items()
            if suffix_of(path) not in JPEGS and len([value for value in label_values(path) or () if value]) > 1
        ]
        if several and "*" not in several[0]:
            raise ValueError(
                f"Each case has {len(texts)} labels, of which {several[0]} has several classes: {some(list(texts))}. "
                "Which is meant? Keep one of them in the folder, or list the files in a table (image, label)."
            )

    def _plain(self, texts: list[str]) -> list[str]:
        """Patterns with the folder of a split or a patient as such, and nothing that MONAI would evaluate."""
        pattern, found = Pattern(texts[0]), self.found
        if "split" in pattern.names and len({SPLITS[v["split"].lower()] for v in found}) == 1:
            texts = [text.replace("{split}", found[0]["split"]) for text in texts]
        for name in [n for n in pattern.names if n.startswith("group")][-1:]:
            if all(_is_patient(values[name], values["case"]) for values in found):
                texts = [text.replace(f"{{{name}}}", "{patient}") for text in texts]
                number = len({values[name] for values in found})
                self.notes.append(
                    f"{number} patients, one a folder: all cases of a patient are in one part of a split."
                )
        return [f"./{text}" if text[0] in "$%@" else text for text in texts]

    def _patient(self, image: str) -> dict[str, str]:
        pattern = Pattern(image)
        if "patient" in pattern.names:
            return {}
        keys = ["/".join(values[name] for name in pattern.names if name in values) for values in self.found]
        rule = patient_rule(keys)
        if rule is None:
            return {}
        self.notes.append(rule[1])
        return {"patient": rule[0]}

    def _test_images(self, cases: Sequence[Case]) -> str:
        used = {path for case in cases for path in files_of(case)}
        folders = dict.fromkeys(item.key.rpartition("/")[0] for item in self.items if item.path not in used)
        for folder in folders:
            word = split_word(folder.rpartition("/")[2], SPLITS) or split_word(folder, SPLITS)
            if word and SPLITS[word.lower()] == "test" and re.fullmatch(r"[\w .()+,=/-]+", folder):
                return folder
        return ""

    def _name(self, image: str, label: str) -> str:
        folders = [text.partition("{")[0].rpartition("/")[0] for text in (image, label)]
        if self.labels_dir is not None:
            return "two folders"
        if all(folders) and folders[0] != folders[1]:
            return f"two folders ({', '.join(folders)})"
        return f"names of files ({image}, {label})"


def _ends(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Ends of the names of sequences' files; None where they do not differ by their ends."""
    lasts = [text.rpartition("/")[2] for text in texts]
    starts = {last[: last.rfind("}") + 1] for last in lasts}
    ends = tuple(last[last.rfind("}") + 1 :].removesuffix(suffix_of(last)) for last in lasts)
    return ends if len(starts) == 1 and all(ends) and not any("?" in end for end in ends) else None


def _is_patient(folder: str, case: str) -> bool:
    """Whether a folder is a patient's: its cases are called after it, or its own name says so."""
    if not re.search(r"\d", folder):
        return False
    return (
        case.startswith(folder)
        or re.fullmatch(r"(?i)(sub|subj|subject|pat|patient|p|pid)[-_ ]?\d+", folder) is not None
    )
