"""Which files of a BIDS data set are labels, and of which images."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib

from medsaga.data.found_images import some

from .bids import bids_datalist, derived_files, raw_files, read_table
from .layout import Layout, OtherLayoutError, layout_of

__all__ = ["find_bids"]

_LABELS = re.compile(r"(?:^|_)(?:dseg|mask|msk|seg|segmentation|roi|lesion|label|labels|\w*-?manual|\w*mask|\w*seg)$")
_PREFERRED = re.compile(r"manual|expert|lesion|desc-final|label-", re.IGNORECASE)

_Sessions = dict[str, dict[str, str]]  # path by last part of the name, by what the name says before it


def find_bids(folder: Path, labels: Path | None = None) -> Layout:
    """A BIDS data set with labels in ``derivatives``, whatever their names' entities are.

    Raises:
        OtherLayoutError: it is none.
        FileNotFoundError, ValueError: a file is missing, or two have one name.
    """
    if labels is not None or not (folder / "derivatives").is_dir():
        raise OtherLayoutError("a folder derivatives")
    images = raw_files(folder)
    if not images:
        raise OtherLayoutError("images in folders sub-*")
    stems = _Stems(images)
    found: dict[tuple[str, str], _Sessions] = defaultdict(dict)  # by pipeline and last part of the label's name
    for key, path in derived_files(folder).items():
        stem = key.rpartition("/")[2]
        said = stems.said_before(stem)
        if said:
            pipeline = key.partition("sub-")[0].strip("/")
            found[pipeline, stem[len(said) + 1 :]][said] = {"": path}
    found = {which: cases for which, cases in found.items() if _LABELS.search(which[1])} or dict(found)
    if not found:
        raise OtherLayoutError("labels sub-*.nii.gz in derivatives")
    notes: list[str] = []
    pipeline, tails = _chosen(found, notes)
    said = list(dict.fromkeys(name for tail in tails for name in found[pipeline, tail]))
    sequences = _sequences(stems, said, tails, next(iter(found[pipeline, tails[0]].values()))[""], notes)
    classes = [_class_name(tail) for tail in tails] if len(tails) > 1 else None
    arguments: dict[str, Any] = {"image": sequences if len(sequences) > 1 else sequences[0]}
    arguments["label"] = tails[0] if classes is None else tails
    if classes is not None:
        arguments["classes"] = classes
        notes.append(f"Each class has a file of its own: {', '.join(classes)}.")
    if pipeline and len({p for p, _ in found}) > 1:
        arguments["pipeline"] = pipeline
    unlabelled = [s for s in stems.names if s.endswith(f"_{sequences[0]}") and s[: -len(sequences[0]) - 1] not in said]
    if unlabelled:
        arguments["unlabelled"] = "leave out"
        number = len(unlabelled) + len(said)
        notes.append(f"{len(unlabelled)} of {number} images {sequences[0]} have no label and are left out.")
    named = {name: value for value, name in enumerate(classes, 1)} if classes else _named_values(folder, pipeline)
    return layout_of(
        "Brain Imaging Data Structure (derivatives)",
        bids_datalist,
        folder,
        arguments,
        classes=named,
        channel_names=tuple(sequences) if len(sequences) > 1 else ("image",),
        sequences=tuple(f"_{tail}" for tail in sequences) if len(sequences) > 1 else None,
        modality="CT" if sequences[0].endswith(("ct", "CT")) else "MR",
        notes=tuple(notes),
        about=_about(folder),
    )


class _Stems:
    """Names of images, and what the names of labels share with them."""

    def __init__(self, images: dict[str, str]) -> None:
        self.names = {key.rpartition("/")[2]: path for key, path in images.items()}
        self.folders = {key.rpartition("/")[2]: key.rpartition("/")[0] for key in images}
        self.tails: _Sessions = defaultdict(dict)
        for name, path in self.names.items():
            parts = name.split("_")
            for i in range(1, len(parts)):
                self.tails["_".join(parts[:i])]["_".join(parts[i:])] = path

    def said_before(self, label: str) -> str:
        """The longest beginning of a label's name that is the beginning of an image's; empty for none."""
        parts = label.split("_")
        beginnings = ("_".join(parts[:i]) for i in range(len(parts) - 1, 0, -1))
        return next((said for said in beginnings if said in self.tails), "")


def _chosen(found: dict[tuple[str, str], _Sessions], notes: list[str]) -> tuple[str, list[str]]:
    """The pipeline and the labels in it that are taken: those of most cases, made by hand before others."""
    best = max(found, key=lambda which: (bool(_PREFERRED.search("/".join(which))), len(found[which]), which[1]))
    pipeline, tail = best
    tails = [tail]
    if "label-" in tail:
        without = re.sub(r"label-[A-Za-z0-9]+", "label-", tail)
        tails = sorted(t for p, t in found if p == pipeline and re.sub(r"label-[A-Za-z0-9]+", "label-", t) == without)
    if others := sorted("/".join(which).strip("/") for which in found if which[0] != pipeline or which[1] not in tails):
        notes.append(f"Other files in derivatives are left out: {some(others)}.")
    return pipeline, tails


def _sequences(stems: _Stems, said: list[str], tails: list[str], label: str, notes: list[str]) -> list[str]:
    """Last parts of the names of images that every labelled case has, side by side, the label's own first."""
    common = set.intersection(*(set(stems.tails[name]) for name in said))
    if not common:
        raise OtherLayoutError("an image of the same name for every label in derivatives")
    folders = {tail: _below(stems.folders[f"{said[0]}_{tail}"]) for tail in common}
    words = set(re.split(r"_(?:space-)?", tails[0].removeprefix("space-")))  # the image that the label is drawn on
    for named in (
        [tail for tail in common if tail.rpartition("_")[2] in words],
        [tail for tail in common if folders[tail] and f"/{folders[tail]}/" in label.partition("/derivatives/")[2]],
        [tail for tail in common if _shape(stems.tails[said[0]][tail]) == _shape(label)],
        list(common),
    ):
        if named:
            break
    named.sort()
    beside = sorted(tail for tail in common if folders[tail] == folders[named[0]] and tail != named[0])
    if left_out := sorted(common - {named[0], *beside}):
        notes.append(f"Sequences in other folders than {named[0]} are left out: {some(left_out)}.")
    return [named[0], *beside]


def _below(folder: str) -> str:
    """Folders between the session and the file: ``dwi``."""
    return "/".join(part for part in folder.split("/") if not part.startswith(("sub-", "ses-")))


def _shape(path: str) -> tuple[int, ...] | None:
    try:
        return tuple(nib.load(path).shape[:3])
    except Exception:  # what is wrong with it is said when it is read
        return None


def _class_name(tail: str) -> str:
    match = re.search(r"label-([A-Za-z0-9]+)", tail)
    return match[1] if match else tail


def _named_values(folder: Path, pipeline: str) -> dict[str, int] | None:
    """Classes of a table ``dseg.tsv`` with the columns index and name."""
    derivatives = folder / "derivatives" / pipeline
    for path in (*sorted(derivatives.glob("*dseg.tsv")), *sorted(folder.glob("*dseg.tsv"))):
        rows = [row for row in read_table(path) if (row.get("index") or "").strip().isdigit() and row.get("name")]
        classes = {row["name"]: int(row["index"]) for row in rows if int(row["index"]) != 0}
        if classes:
            return classes
    return None


def _about(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8-sig"))
        said = {
            "name": content.get("Name"),
            "licence": content.get("License"),
            "reference": content.get("HowToAcknowledge"),
        }
    except (AttributeError, OSError, ValueError):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str) and value}
