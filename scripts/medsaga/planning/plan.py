"""Look at a data set and plan a bundle for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsaga.data.case import files_of

from .choice import Choices
from .findings import Findings, find
from .flip import choose_flip
from .intensities import choose_input, choose_intensities
from .machine import Machine, peak_of
from .pieces import choose_pieces
from .source import Source, open_source
from .survey import survey
from .training import choose_patients, choose_steps

__all__ = ["Looked", "Plan", "look_at", "plan_bundle"]

_LONGEST = 400  # letters of a text from an index
_SHOWN_CLASSES = 5
_MODEL = {"vit_t": "LiteMedSAM", "vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H"}


@dataclass(frozen=True)
class Looked:
    """A data set that was looked at.

    Attributes:
        source: of its cases.
        findings: what it holds.
        usable: its cases that can be used.
        plane: in which volumes were cut to measure them.
        notes: a sentence for each guess and each unusual finding.
    """

    source: Source
    findings: Findings
    usable: tuple[tuple[int, Mapping[str, Any]], ...]
    plane: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A bundle that is to be written.

    Attributes:
        looked: the data set.
        choices: how to train on it.
        dataset: the bundle's ``dataset.json``.
        source: of the data, a sentence.
        licence: of the data, as an index says; empty where none does.
    """

    looked: Looked
    choices: Choices
    dataset: dict[str, Any]
    source: str
    licence: str


def look_at(
    data: str | Path,
    labels: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    modality: str | None = None,
    label_values: list[int] | str | None = None,
    plane: str = "auto",
    workers: int | None = None,
) -> Looked:
    """Recognise a data set and look at all its cases.

    Args:
        data: folder, or table of cases.
        labels: folder of the labels, where it is another.
        class_names: what a user calls the classes, background left out.
        modality: what a user says.
        label_values: of the classes in the labels, in their order, or ``"instances"``; None finds them.
        plane: in which volumes are cut.
        workers: number of reading processes; None takes one for each core.

    Raises:
        FileNotFoundError, ValueError: no known kind of data set, no case that can be used, or names and values that do
            not fit the data set.
    """
    source = open_source(data, labels, class_names)
    cases = source.layout.cases
    channels = len(source.channel_names)
    seen = survey(cases, source.class_names, channels, plane, workers)
    findings = find(
        cases,
        seen,
        source.layout.classes,
        None if source.by_name else class_names,
        modality or source.layout.modality,
        label_values,
    )
    wrong = {row.file for row in findings.wrong}
    usable = tuple((n, case) for n, case in enumerate(cases) if wrong.isdisjoint(files_of(case)) and "label" in case)
    notes = [*source.notes, *findings.notes]
    if any(re.fullmatch(r"class \d+", one.name) for one in findings.classes):
        notes.append("The data do not say what the classes are called: name them with --class-names NAME ...")
    return Looked(source, findings, usable, plane, tuple(notes))


def plan_bundle(
    looked: Looked, name: str, asked: Mapping[str, Any], machine: Machine, base: Path, texts: Mapping[str, str | None]
) -> Plan:
    """Choose how to train on a data set.

    Args:
        looked: the data set.
        name: of the bundle.
        asked: values by field of ``dataset.json`` that a user asked for.
        machine: to train on.
        base: folder of the template of bundles.
        texts: ``title``, ``description`` and ``source`` that a user gave, or None for each.
    """
    found, layout = looked.findings, looked.source.layout
    choices = Choices(dict(asked))
    choose_input(found, choices, machine)
    choose_intensities(found, choices)
    choose_flip(found, choices)
    choose_pieces(found, choices)
    choose_patients(found, choices)
    fixed = _fields(looked, name, choices, texts)
    peak = peak_of(base, machine)
    choose_steps(found, choices, machine, lambda settings: peak(fixed | settings))
    source = texts.get("source") or _plain(layout.about.get("reference", "")) or "Data of the bundle's author."
    dataset = {**_fields(looked, name, choices, texts), "source": source, **choices.values()}
    return Plan(looked, choices, dataset, source, _plain(layout.about.get("licence", "")))


def _fields(looked: Looked, name: str, choices: Choices, texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Fields that are not choices."""
    found, layout = looked.findings, looked.source.layout
    classes = [one.name for one in found.classes]
    shown = ", ".join(classes[:_SHOWN_CLASSES]) + (", ..." if len(classes) > _SHOWN_CLASSES else "")
    images = f"{found.modality or 'medical'} images"
    what = f"slices of {images}" if found.volumes else images
    model = _MODEL.get(choices["encoder"], choices["encoder"])
    said = _plain(layout.about.get("description", ""))
    return {
        "name": name,
        "title": _plain(texts.get("title") or layout.about.get("name") or name.replace("_", " ")),
        "task": f"Segmentation of {shown} in {images}",
        "description": texts.get("description")
        or f"{model} fine-tuned with GaLore (MedSAGa's recipe) on {what} to segment {shown}."
        + (f" {said}" if said else ""),
        "source": "",
        "dataset_dir": str(looked.source.folder),
        "test_images": layout.test_images,
        "datalist": dict(layout.datalist),
        "class_names": ["background", *classes],
        "label_values": None if looked.source.by_name else found.label_values,
        "channel_names": list(looked.source.channel_names),
        "sequences": list(layout.sequences) if layout.sequences else None,
        "colour": found.colour,
        "modality": found.modality or "unknown",
        "data_type": next(iter(sorted(kind for kind in found.kinds if "label" not in kind)), "nibabel").split(" ")[0],
        "output_ext": ".nii.gz" if found.volumes else ".png",
        **choices.values(),
    }


def _plain(text: Any) -> str:
    """Text from an index in one line, without characters that a config would evaluate."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split()).lstrip("$%@ ")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
