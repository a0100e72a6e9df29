"""Checks for data that must not be handed on: paths of a machine, names of patients."""

from __future__ import annotations

import json
from collections.abc import Iterator

from medsaga.export.clean import machine_paths, paths_in_text
from medsaga.records import read_record

from .bundle import Bundle
from .findings import skip_without

__all__ = ["no_machine_paths", "no_patients"]

_LOCAL = "this folder is not checked as a bundle to hand on to others (--published does so)"
_PARTS = ("train", "validation", "test", "learnt_before")


def no_machine_paths(bundle: Bundle) -> Iterator[str]:
    """No absolute path in configs and texts."""
    skip_without(bundle.published, _LOCAL)
    for name in bundle.configs:
        for key, path in machine_paths(bundle.config(name)).items():
            yield f"{name}: {key} is {path!r}, a path of one machine; make it relative."
    for path in (bundle.root / "configs" / "metadata.json", *sorted((bundle.root / "docs").glob("*"))):
        if path.suffix in (".json", ".md", ".txt"):
            for found in dict.fromkeys(paths_in_text(path.read_text(encoding="utf-8", errors="replace"))):
                yield f"{path.relative_to(bundle.root)} names {found!r}, a path of one machine; leave it out."


def no_patients(bundle: Bundle) -> Iterator[str]:
    """No name of a patient in weights, splits and results."""
    skip_without(bundle.published, _LOCAL)
    for path in sorted((bundle.root / "models").glob("*.pt")):
        record = read_record(path)
        if record is not None and (number := len({name for part in _PARTS for name in record.get(part, [])})):
            where = path.relative_to(bundle.root)
            yield f"{where} names {number} patients: python -m medsaga.bundle export leaves them out."
    for name in bundle.configs:
        if bundle.config(name).get("split"):
            yield f"{name}: split names patients, or a file that does; leave it out."
    for path in sorted(bundle.root.rglob("split.json")):
        yield f"{path.relative_to(bundle.root)} names patients; leave it out."
    if (path := bundle.root / "dataset.json").is_file() and json.loads(path.read_text()).get("split"):
        yield "dataset.json: split names patients; leave it out."
    for folder in ("output", "cache", "eval"):
        if (bundle.root / folder).is_dir():
            yield f"{folder}/ holds results with the names of cases; leave it out."
