"""Tables of images and labels: CSV, TSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medsaga.data.found_images import some

from .layout import Case, existing_folder, inside, patient_in
from .named_files import unique_names
from .patterns import SPLITS

__all__ = ["TABLES", "Columns", "columns_of", "read_rows", "table_datalist", "table_path"]

TABLES = (".csv", ".tsv", ".json")

_IMAGE = ("image", "images", "img", "imgs", "scan", "volume", "image_path", "img_path", "image_file", "image_name")
_LABEL = ("label", "labels", "mask", "masks", "seg", "segmentation", "annotation", "gt", "ground_truth", "groundtruth")
_PATIENT = ("patient", "patient_id", "patientid", "pid", "subject", "subject_id", "participant_id", "participant")
_SPLIT = ("split", "set", "subset", "partition", "part", "phase")
_END = re.compile(r"_(?:path|paths|file|files|filename|name)$")


class Columns(NamedTuple):
    """Names of a table's columns.

    Attributes:
        images: one a sequence.
        labels: one, or one a class.
        classes: names of the classes, where there is a column a class.
        channels: names of the sequences.
        patient, split, modality: of these; empty where there is none.
    """

    images: list[str]
    labels: list[str]
    classes: list[str] | None
    channels: list[str]
    patient: str
    split: str
    modality: str


def table_datalist(
    dataset_dir: str | Path, table: str = "", patient: str | None = None, classes: Sequence[str] | None = None
) -> list[Case]:
    """Labelled cases of a table with the columns ``image`` and ``label``.

    Names of columns may be in capitals and some usual others (``mask``, ``image_path``). Several sequences have a
    column each (``image_1``, ``image_2`` or ``image_flair``, ``image_t1``), and so may classes (``label_liver``). A
    row's ``patient``, ``split`` (train, val, test) and ``modality`` are taken where there are such columns. Paths are
    relative to the table. JSON is a list of such objects, or has lists of them, as MONAI's with ``training``. Rows
    without a label are left out.

    Args:
        dataset_dir: folder of the table, or the table itself.
        table: name of the table in the folder.
        patient: regular expression whose first group, matched at the start of the image's path, is the patient, for
            tables without such a column.
        classes: names of the classes, where there is a column a class; None for those that the columns say.

    Raises:
        FileNotFoundError: no such table, or files that it names are missing.
        ValueError: it cannot be read, has no such columns, names files outside of the folder, or an image twice.
    """
    path = table_path(dataset_dir, table)
    folder = path.parent
    rows = read_rows(path)
    columns = columns_of(rows, path)
    names = list(classes) if classes is not None else columns.classes
    if names is not None and len(names) != len(columns.labels):
        raise ValueError(
            f"classes is {names}; it must name a class for each column of {path}: {', '.join(columns.labels)}."
        )
    cases: list[Case] = []
    seen: set[str] = set()
    for row in rows:
        try:
            images = [str(inside_or_below(folder, value)) for c in columns.images for value in _listed(row.get(c))]
            labels = [_paths(folder, row.get(c)) for c in columns.labels]
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from err
        if not images or not any(labels):
            continue
        if images[0] in seen:
            raise ValueError(f"{path} has {images[0]} in several rows; an image must have one row.")
        seen.add(images[0])
        case: Case = {"image": images[0] if len(images) == 1 else images}
        case["label"] = labels[0] if names is None else {name: label for name, label in zip(names, labels) if label}
        relative = Path(images[0]).relative_to(folder).with_suffix("").as_posix()
        said = str(row.get(columns.patient) or "").strip()
        case["patient"] = patient_in(relative, patient) if patient else said
        case["name"] = relative.replace("/", "_")
        if columns.split:
            part = str(row.get(columns.split) or "").strip().lower()
            if part not in SPLITS:
                raise ValueError(f"{path}: {columns.split} is {part!r} for {relative}; it must be train, val or test.")
            case["split"] = SPLITS[part]
        if columns.modality:
            case["modality"] = str(row.get(columns.modality) or "").strip()
        cases.append(case)
    if not cases:
        raise FileNotFoundError(f"{path} has no row with an image and a label.")
    count = len(cases[0]["image"]) if isinstance(cases[0]["image"], list) else 1
    for case in cases:
        if (len(case["image"]) if isinstance(case["image"], list) else 1) != count:
            raise ValueError(f"{path}: not all rows have {count} images, one for each sequence.")
    _check_files(path, cases)
    return unique_names(cases)


def table_path(dataset_dir: str | Path, table: str = "") -> Path:
    """A table in a folder, or one that is named itself."""
    root = Path(dataset_dir).expanduser()
    if root.is_file():
        return root
    path = inside(existing_folder(root, "data set folder"), table or "cases.csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it must be a table with the columns image and label.")
    return path


def inside_or_below(folder: Path, value: str) -> Path:
    """A path of a table, relative to its folder; one from the root may name what lies below the folder, too."""
    path = Path(value.strip())
    if path.is_absolute() and ".." not in path.parts and path.is_relative_to(folder.absolute()):
        return folder / path.relative_to(folder.absolute())
    return inside(folder, value)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table, as texts; those of JSON as they are, with ``split`` from the name of their list.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if path.suffix.lower() == ".json":
            return _json_rows(json.loads(path.read_text(encoding="utf-8-sig")))
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = max(",;\t", key=head.count)
        return list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    except (csv.Error, RecursionError, TypeError, ValueError) as err:
        raise ValueError(f"{path} cannot be read as a table: {err}") from err


def _json_rows(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, list):
        lists = {"": content}
    elif isinstance(content, dict):
        lists = {name: rows for name, rows in content.items() if name.lower() in SPLITS and isinstance(rows, list)}
    else:
        lists = {}
    lists = {name: [row for row in rows if isinstance(row, dict)] for name, rows in lists.items()}
    labelled = [name for name, rows in lists.items() if any(_column(list(row), _LABEL) for row in rows)]
    if len(labelled) < 2:
        return [row for name in labelled for row in lists[name]]
    return [{**row, "split": name} for name in labelled for row in lists[name]]


def columns_of(rows: Sequence[dict[str, Any]], path: Path) -> Columns:
    """What the columns of a table are.

    Raises:
        ValueError: there is none for images, or none for labels.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))
    images, channels = _with_ends(names, _IMAGE)
    labels, classes = _with_ends([name for name in names if name not in images], _LABEL)
    if not images or not labels:
        raise ValueError(f"{path} has the columns {', '.join(names) or 'none'}; it needs image and label.")
    others = [name for name in names if name not in (*images, *labels)]
    return Columns(
        images,
        labels,
        classes if len(labels) > 1 else None,
        channels,
        _column(others, _PATIENT),
        _column(others, _SPLIT),
        _column(others, ("modality",)),
    )


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower())


def _column(names: Sequence[str], meanings: Sequence[str]) -> str:
    plain = {_END.sub("", _plain(name)): name for name in reversed(names)} | {_plain(n): n for n in reversed(names)}
    return next((plain[meaning] for meaning in meanings if meaning in plain), "")


def _with_ends(names: Sequence[str], meanings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns of a meaning, one, or several with ends of their own (``image_1``, ``image_flair``), and the ends."""
    found = _column(names, meanings)
    if found:
        return [found], ["image"]
    starts = sorted(meanings, key=len, reverse=True)
    columns, ends = [], []
    for name in names:
        plain = _END.sub("", _plain(name))
        start = next((s for s in starts if re.match(rf"{s}_?\d+$|{s}_.+$", plain)), None)
        if start is not None:
            columns.append(name)
            ends.append(plain[len(start) :].strip("_").replace("_", " "))
    return columns, [f"channel {end}" if end.isdigit() else end for end in ends]


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(v).strip() for v in values if v is not None and str(v).strip()]


def _paths(folder: Path, value: Any) -> Any:
    paths = [str(inside_or_below(folder, path)) for path in _listed(value)]
    return paths[0] if len(paths) == 1 else paths or None


def _check_files(path: Path, cases: Sequence[Case]) -> None:
    from medsaga.data.case import files_of

    missing = [file for case in cases for file in files_of(case) if not Path(file).exists()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} files that {path} names are missing: {some(missing)}.")
