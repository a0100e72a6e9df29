"""Whether a folder has a table of its images and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .ends import ends_of_files
from .layout import Case, Layout, OtherLayoutError, layout_of
from .patients import patient_rule
from .tables import TABLES, columns_of, inside_or_below, read_rows, table_datalist

__all__ = ["find_table"]

_TRIED = 5  # rows whose images are looked for


def find_table(folder: Path, labels: Path | None = None) -> Layout:
    """A table that is named itself, or the only one in a folder that names images and labels that are there.

    Raises:
        OtherLayoutError: there is none.
        FileNotFoundError, ValueError: a table that is named itself is none, or names what is missing.
    """
    if folder.is_file():
        if folder.suffix.lower() not in TABLES:
            raise OtherLayoutError(f"a table ({', '.join(TABLES)})")
        return _layout(folder, folder.parent)
    if labels is not None:
        raise OtherLayoutError("a table of images and labels")
    with os.scandir(folder) as entries:
        tables = sorted(
            Path(entry.path)
            for entry in entries
            if entry.name.lower().endswith(TABLES) and not entry.name.startswith((".", "dataset.json"))
        )
    tables = [table for table in tables if _names_images(table)]
    if not tables:
        raise OtherLayoutError("a table with the columns image and label that names images in the folder")
    if len(tables) > 1:
        raise ValueError(
            f"{folder} has {len(tables)} tables of images and labels: {', '.join(t.name for t in tables)}. Name the "
            "one that is meant with --data FOLDER/TABLE."
        )
    return _layout(tables[0], folder)


def _names_images(table: Path) -> bool:
    try:
        rows = read_rows(table)
        columns = columns_of(rows, table)
        first = [row for row in rows if row.get(columns.images[0]) and row.get(columns.labels[0])][:_TRIED]
        found = []
        for row in first:
            for column in (columns.images[0], columns.labels[0]):
                value = row[column][0] if isinstance(row[column], list) else row[column]
                found.append(inside_or_below(table.parent, str(value)).exists())
    except (IndexError, OSError, ValueError):
        return False
    return any(found)


def _layout(table: Path, folder: Path) -> Layout:
    arguments: dict[str, Any] = {"table": table.name}
    rows = read_rows(table)
    columns = columns_of(rows, table)
    if columns.classes is not None:
        arguments["classes"] = columns.classes
    cases = table_datalist(folder, **arguments)
    notes = []
    if len(cases) < len(rows):
        notes.append(f"{len(rows) - len(cases)} of {len(rows)} rows have no label and are left out.")
    given: list[Case] | None = cases
    if not columns.patient:
        names = [Path(_first(case)).relative_to(folder).with_suffix("").as_posix() for case in cases]
        rule = patient_rule(names)
        if rule is not None:
            arguments["patient"] = rule[0]
            given = None
            notes.append(rule[1])
    several = isinstance(cases[0]["image"], list)
    channels = columns.channels if len(columns.images) > 1 else []
    if several and not channels:
        channels = [f"channel {i + 1}" for i in range(len(cases[0]["image"]))]
    ends = ends_of_files(cases) if several else None
    if several and ends is None:
        notes.append("The sequences' names do not differ at their ends: images to segment must name all files.")
    modalities = {case.get("modality", "") for case in cases}
    return layout_of(
        f"table {table.name}",
        table_datalist,
        folder,
        arguments,
        given,
        classes=None if columns.classes is None else {name: i for i, name in enumerate(columns.classes, 1)},
        channel_names=tuple(channels) or ("image",),
        sequences=ends,
        modality=modalities.pop() if len(modalities) == 1 else "",
        notes=tuple(notes),
    )


def _first(case: Case) -> str:
    return case["image"][0] if isinstance(case["image"], list) else case["image"]
