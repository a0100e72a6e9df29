"""Folders of the Medical Segmentation Decathlon: a ``dataset.json`` that lists images and labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsaga.data.found_images import some
from medsaga.reading import name_without_suffix

from .ends import common_start
from .layout import Case, existing_folder, inside, patient_in

__all__ = ["decathlon_datalist", "read_index"]

logger = logging.getLogger(__name__)


def decathlon_datalist(
    dataset_dir: str | Path, lists: Sequence[str] = ("training",), patient: str = r"(.+)"
) -> list[Case]:
    """Labelled cases of a Medical Segmentation Decathlon folder (``dataset.json``, ``imagesTr``, ``labelsTr``).

    Each file is one patient, as in the Decathlon's tasks. Which files are cases is what ``dataset.json`` says: files
    that it does not name are not looked at. Cases that it names and that are not there at all (part of a data set was
    copied) are left out with a warning; an image without its label, or the reverse, is an error.

    Args:
        dataset_dir: the folder with ``dataset.json``.
        lists: names of the lists of labelled cases to take from ``dataset.json``, one after the other, those that it
            has. The Decathlon labels ``training`` only, AMOS also ``validation`` (``imagesVa``, ``labelsVa``). A case
            may list one image a sequence.
        patient: regular expression whose first group, matched at the start of an image's name without suffix, is the
            patient.

    Raises:
        FileNotFoundError: no such folder, no ``dataset.json``, an image or label missing, or no case at all.
        ValueError: a ``dataset.json`` that cannot be read or has none of the lists.
    """
    folder = existing_folder(dataset_dir, "data set folder")
    index = folder / "dataset.json"
    content = read_index(folder)
    try:
        named = [name for name in lists if name in content]
        if not named:
            raise KeyError(*lists)
        listed = [_paths(folder, case) for name in named for case in content[name]]
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        wanted = " or ".join(f"'{name}'" for name in lists)
        raise ValueError(
            f"{index} is not a Decathlon dataset.json with a list {wanted} of images and labels: {err!r}"
        ) from err
    datalist: list[Case] = []
    absent: list[str] = []
    for images, label in listed:
        name = common_start([name_without_suffix(path) for path in images]) if len(images) > 1 else ""
        name = name or name_without_suffix(images[0])
        there = [path for path in (*images, label) if path.exists()]
        if not there:
            absent.append(name)
            continue
        for path in (*images, label):
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing, but its counterpart {there[0]} is there.")
        image = str(images[0]) if len(images) == 1 else [str(path) for path in images]
        case: Case = {"image": image, "label": str(label), "patient": patient_in(name, patient)}
        datalist.append(case if len(images) == 1 else {**case, "name": name})
    if not datalist:
        raise FileNotFoundError(f"None of the {len(listed)} cases that {index} lists is in {folder}.")
    if absent:
        logger.warning(
            f"{len(absent)} of the {len(listed)} cases that {index} lists are left out, because neither their image "
            f"nor their label is in {folder}: {some(absent)}."
        )
    return datalist


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``dataset.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON with an object.
    """
    index = folder / "dataset.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} is missing: {folder} is not a Decathlon folder (dataset.json, imagesTr, labelsTr)."
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}, not an object")
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError(f"{index} is not a Decathlon dataset.json, nor one of nnU-Net: {err!r}") from err
    return content


def _paths(folder: Path, case: dict[str, Any]) -> tuple[list[Path], Path]:
    images = case["image"] if isinstance(case["image"], list) else [case["image"]]
    if not images:
        raise ValueError("a case without an image")
    return [inside(folder, path) for path in images], inside(folder, case["label"])
