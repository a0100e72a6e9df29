"""Where a data set comes from: its layout, and how its labels and images have to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import medsaga.data
from medsaga.data.layouts import Layout, recognise
from medsaga.reading import open_image
from medsaga.reading.dicom_labels import dicom_label_kind, label_names

from .classes import checked_names

__all__ = ["Source", "open_source"]

_TRIED = 20  # number of cases whose headers show the form of the labels


@dataclass(frozen=True)
class Source:
    """A data set that has been recognised.

    Attributes:
        folder: of the images, or of the table of the cases: ``dataset_dir`` of the bundle.
        layout: as it was recognised. A user's names of classes replace those that its datalist holds.
        by_name: whether labels say by names, files or channels which class is which, so that reading needs the names.
        class_names: names for reading, background first; None where labels hold numbers.
        channel_names: of the image.
        notes: what was guessed, a sentence each.
    """

    folder: Path
    layout: Layout
    by_name: bool
    class_names: list[str] | None
    channel_names: list[str]
    notes: tuple[str, ...]


def open_source(
    folder: str | Path, labels: str | Path | None = None, class_names: Sequence[str] | None = None
) -> Source:
    """Recognise a folder, and find out from some headers which form its labels and images have.

    Args:
        folder: of the data, or a table of cases.
        labels: folder of the labels, where it is another.
        class_names: what a user calls the classes, background left out, in the order of values, files or channels.

    Raises:
        FileNotFoundError, ValueError: nothing is there, no layout that is known, or names that do not fit.
    """
    folder = Path(folder).expanduser().resolve()
    layout = recognise(folder, labels)
    folder = folder.parent if folder.is_file() else folder  # of a table, which the datalist names
    first = [case for case in layout.cases if "label" in case][:_TRIED]
    if not first:
        raise FileNotFoundError(f"{folder}: none of the {len(layout.cases)} images has a label.")
    channels, channel_notes = _channel_names(layout)
    names, notes = _names_in(layout, [case["label"] for case in first])
    if names is None:
        return Source(folder, layout, False, None, channels, (*layout.notes, *channel_notes))
    if class_names is not None:
        if len(class_names) != len(names):
            raise ValueError(
                f"--class-names has {len(class_names)} names, but the labels have {len(names)} classes "
                f"({', '.join(names)}): name them in this order, without the background."
            )
        layout, names = _renamed(layout, folder, names, checked_names(class_names)), checked_names(class_names)
    names = checked_names(names)
    layout = replace(layout, classes={name: value for value, name in enumerate(names, 1)})
    return Source(folder, layout, True, ["background", *names], channels, (*layout.notes, *channel_notes, *notes))


def _names_in(layout: Layout, labels: Sequence) -> tuple[list[str] | None, tuple[str, ...]]:
    """Names of the classes of labels whose files tell them apart; None where labels hold numbers."""
    known = list(layout.classes or {})
    if any(isinstance(label, Mapping) for label in labels):
        return known or list(dict.fromkeys(str(name) for label in labels for name in label)), ()
    if kinds := {kind for label in labels if (kind := dicom_label_kind(label))}:
        if known:
            return known, ()
        found = list(dict.fromkeys(name for label in labels for name in label_names(label)))
        return found, (f"The classes are those that the first {len(labels)} labels ({', '.join(kinds)}) name.",)
    for label in labels:
        try:
            file = open_image(label, label=True)
            if file.grid.channels == 1:
                return None, ()
            return known or [f"class {n}" for n in range(1, _one_hot_classes(file.load()) + 1)], (
                f"The labels have {file.grid.channels} channels: they are read as one-hot, one channel a class.",
            )
        except (OSError, ValueError):  # it is listed when all cases are looked at
            continue
    return None, ()


def _one_hot_classes(values: np.ndarray) -> int:
    """Classes of a one-hot label (..., C), without the first where each voxel has one: then that is background."""
    complete = (np.count_nonzero(values, axis=-1) == 1).all()
    return values.shape[-1] - bool(complete)


def _channel_names(layout: Layout) -> tuple[list[str], tuple[str, ...]]:
    """Names of the image's channels: those of an index, else numbered by the count in a volume's header."""
    names = list(layout.channel_names)
    image = layout.cases[0]["image"]
    if names != ["image"] or isinstance(image, (list, tuple)):
        return names, ()
    try:
        grid = open_image(image).grid
    except (OSError, ValueError):  # it is listed when all cases are looked at
        return names, ()
    picture = grid.rank == 2 and grid.channels == 3
    if grid.channels == 1 or picture:
        return names, ()
    count = grid.channels
    return [f"channel {n}" for n in range(1, count + 1)], (
        f"The images have {count} channels, whose names are unknown.",
    )


def _renamed(layout: Layout, folder: Path, names: Sequence[str], wanted: Sequence[str]) -> Layout:
    """A layout whose datalist gives the classes other names."""
    if list(names) == list(wanted) or not any(isinstance(case["label"], Mapping) for case in layout.cases):
        return layout
    if layout.datalist.get("classes") != list(names):
        raise ValueError(
            f"The labels' files name the classes {', '.join(names)}, and --class-names cannot change these names."
        )
    arguments = {key: value for key, value in layout.datalist.items() if key != "_target_"} | {"classes": list(wanted)}
    function = getattr(medsaga.data, layout.datalist["_target_"].rpartition(".")[2])
    return replace(layout, datalist=layout.datalist | {"classes": list(wanted)}, cases=function(folder, **arguments))
