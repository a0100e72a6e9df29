"""Raw data folders of nnU-Net, version 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsaga.data.found_images import some

from .decathlon import read_index
from .find_decathlon import about_in, classes_in
from .layout import Case, Layout, OtherLayoutError, channels_in, existing_folder, inside, layout_of, patient_in
from .patients import patient_rule

__all__ = ["find_nnunet", "nnunet_datalist"]

_PARTS = {"Tr": "train", "Ts": "test"}


def nnunet_datalist(dataset_dir: str | Path, parts: Sequence[str] = ("Tr",), patient: str = r"(.+)") -> list[Case]:
    """Labelled cases of a raw data folder of nnU-Net: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr``.

    Each channel is a file of its own, ``CASE_0000``, ``CASE_0001`` and so on; the label is ``CASE``. Where
    ``dataset.json`` has ``dataset``, the files are those that it names. Splits of nnU-Net (``splits_final.json``) are
    of its own cross-validation and are not read.

    Args:
        dataset_dir: the folder with ``dataset.json``.
        parts: ends of the folders' names: ``Tr``, and ``Ts`` where ``labelsTs`` has the labels of ``imagesTs``. With
            both, cases have their part of the split.
        patient: regular expression whose first group, matched at the start of a case's name, is the patient.

    Raises:
        FileNotFoundError: no such folder, no ``dataset.json``, an image, channel or label missing.
        ValueError: a ``dataset.json`` that cannot be read, or names files outside of the folder.

    Source: nnU-Net's documentation/dataset_format.md.
    """
    folder = existing_folder(dataset_dir, "data set folder")
    content = read_index(folder)
    cases: list[Case] = []
    if content.get("dataset"):
        found = _named(folder, content["dataset"])
    else:
        ending = content.get("file_ending", ".nii.gz")
        if not isinstance(ending, str):
            raise ValueError(
                f"{folder / 'dataset.json'}: file_ending is {ending!r}; it must be a suffix such as '.nii.gz'."
            )
        found = [case for part in parts for case in _listed(folder, part, ending)]
    count = max((len(images) for _, images, _, _ in found), default=0)
    for name, images, label, part in found:
        if len(images) != count:
            raise FileNotFoundError(f"Case {name} of {folder} has {len(images)} of {count} channels: {images[0]}.")
        case: Case = {"image": str(images[0]) if count == 1 else [str(path) for path in images], "label": str(label)}
        case["patient"] = patient_in(name, patient)
        if count > 1:
            case["name"] = name
        if len(parts) > 1:
            case["split"] = _PARTS.get(part, "train")
        cases.append(case)
    if not cases:
        raise FileNotFoundError(f"No image CASE_0000 in {folder / 'imagesTr'}.")
    return cases


_Files = tuple[str, list[Path], Path, str]


def _listed(folder: Path, part: str, ending: str) -> list[_Files]:
    images = existing_folder(folder / f"images{part}", f"folder 'images{part}' of the data set")
    labels = existing_folder(folder / f"labels{part}", f"folder 'labels{part}' of the data set")
    expression = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}", re.IGNORECASE)
    channels: dict[str, list[Path]] = {}
    for path in sorted(images.iterdir()):
        match = expression.fullmatch(path.name)
        if match and not path.name.startswith("."):
            channels.setdefault(match[1], []).append(path)
    there = {path.name.lower() for path in labels.iterdir()}
    missing = [f"{name}{ending}" for name in channels if f"{name}{ending}".lower() not in there]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(channels)} images have no label in {labels}: {some(missing)}.")
    return [(name, paths, labels / f"{name}{ending}", part) for name, paths in channels.items()]


def _named(folder: Path, named: Any) -> list[_Files]:
    """Cases of the ``dataset`` of an index: ``{CASE: {"images": [paths], "label": path}}``."""
    try:
        found = [
            (str(name), [inside(folder, path) for path in files["images"]], inside(folder, files["label"]), "Tr")
            for name, files in named.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{folder / 'dataset.json'}: its 'dataset' names no images and labels: {err!r}") from err
    missing = [str(path) for _, images, label, _ in found for path in (*images, label) if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files that {folder / 'dataset.json'} names are missing: {some(missing)}."
        )
    return found


def find_nnunet(folder: Path, labels: Path | None = None) -> Layout:
    """A raw data folder of nnU-Net, version 1 or 2.

    Raises:
        OtherLayoutError: it is none.
        FileNotFoundError, ValueError: a file is missing, or the index cannot be read.
    """
    if labels is not None or not (folder / "dataset.json").is_file():
        raise OtherLayoutError("dataset.json")
    content = read_index(folder)
    second = "channel_names" in content or "file_ending" in content or isinstance(content.get("dataset"), dict)
    if not second and not any(folder.glob("imagesTr/*_0000.nii.gz")):
        raise OtherLayoutError("images imagesTr/CASE_0000.nii.gz")
    if not isinstance(content.get("dataset"), dict) and not (folder / "imagesTr").is_dir():
        raise OtherLayoutError("a folder imagesTr")
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    tested = (folder / "labelsTs").is_dir() and any((folder / "labelsTs").iterdir())
    if tested and (folder / "imagesTs").is_dir() and not content.get("dataset"):
        arguments["parts"] = ["Tr", "Ts"]
        notes.append("Images of imagesTs, whose labels are in labelsTs, are the test set.")
    if next(
        iter((*folder.glob("splits_final.*"), *folder.glob("../../nnUNet_preprocessed/*/splits_final.json"))), None
    ):
        notes.append("splits_final.json is not read: patients are drawn by seed, or named with --split FILE.")
    cases = nnunet_datalist(folder, **arguments)
    rule = patient_rule([case["patient"] for case in cases])
    if rule is not None:
        arguments["patient"] = rule[0]
        notes.append(rule[1])
    said = content.get("channel_names", content.get("modality"))
    channels = channels_in(said)
    count = len(cases[0]["image"]) if isinstance(cases[0]["image"], list) else 1
    if len(channels) != count:
        if count > 1:
            notes.append(f"dataset.json names {len(channels)} channels, but a case has {count} files.")
            channels = tuple(f"channel {i}" for i in range(count))
        else:
            channels = ("image",)  # colours of one file
    about = about_in(content)
    return layout_of(
        f"nnU-Net v{2 if second else 1}",
        nnunet_datalist,
        folder,
        arguments,
        classes=classes_in(content.get("labels"), notes),
        channel_names=channels,
        sequences=tuple(f"_{i:04}" for i in _numbers(cases[0]["image"])) if count > 1 else None,
        test_images="imagesTs" if not tested and (folder / "imagesTs").is_dir() else "",
        notes=tuple(notes),
        **about,
    )


def _numbers(images: Sequence[str]) -> list[int]:
    found = [re.search(r"_(\d{4})\.", Path(path).name) for path in images]
    return [int(match[1]) if match else i for i, match in enumerate(found)]
