"""Brain Imaging Data Structure: labels in ``derivatives``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from medsaga.data.found_images import some

from .layout import Case, existing_folder
from .listing import list_items
from .patterns import SPLITS

__all__ = ["bids_datalist", "derived_files", "raw_files", "read_table"]


def bids_datalist(
    dataset_dir: str | Path,
    image: str | Sequence[str],
    label: str | Sequence[str],
    classes: Sequence[str] | None = None,
    pipeline: str = "",
    unlabelled: str = "refuse",
) -> list[Case]:
    """Labelled cases of a BIDS data set whose labels are in its folder ``derivatives``, as that of ISLES 2022.

    ``sub-0001/ses-0001/dwi/sub-0001_ses-0001_dwi.nii.gz`` is the image of
    ``derivatives/sub-0001/ses-0001/sub-0001_ses-0001_msk.nii.gz`` for the suffixes ``dwi`` and ``msk``: the names up to
    the suffix are equal, and which folders of the subject lie between does not matter. Subjects are looked for in
    ``rawdata`` where there is such a folder. A subject is one patient, whatever the number of its sessions. A column
    ``split`` of ``participants.tsv`` says each subject's part of the split.

    Args:
        dataset_dir: the folder that holds ``derivatives`` and the subjects or ``rawdata``.
        image: last part of the images' names, such as ``dwi``, ``adc`` or ``acq-axial_T2w``; a list of several
            sequences, in the order of the channels.
        label: last part of the labels' names, such as ``msk`` or ``space-T1w_desc-manual_dseg``; with ``classes`` a
            list of one a class.
        classes: names of the classes that the labels are of, one file each. A case has one of them at least.
        pipeline: folder in ``derivatives`` that the labels are in; empty for all.
        unlabelled: ``refuse`` images without a label, or ``leave out``.

    Raises:
        FileNotFoundError: no such folder, no image, an image without its label, or the reverse.
        ValueError: two images, or two labels, of one name.

    Source: Brain Imaging Data Structure, https://bids-specification.readthedocs.io/
    """
    folder = existing_folder(dataset_dir, "data set folder")
    raw = folder / "rawdata" if (folder / "rawdata").is_dir() else folder
    derivatives = existing_folder(folder / "derivatives", "folder 'derivatives' of the data set")
    images = [image] if isinstance(image, str) else list(image)
    labels = [label] if isinstance(label, str) else list(label)
    if len(labels) != len(classes or [""]):
        raise ValueError(f"label is {label!r}, but classes is {classes!r}; name one class for each label.")
    in_raw, derived = raw_files(folder), derived_files(folder, pipeline)
    image_of = [_by_entities(in_raw, suffix) for suffix in images]
    label_of = [_by_entities(derived, suffix) for suffix in labels]
    if not image_of[0]:
        raise FileNotFoundError(
            f"No image sub-*_{images[0]}.nii.gz in the subjects' folders of {raw}: is this the BIDS folder that holds "
            "them?"
        )
    labelled = {name for found in label_of for name in found}
    for what, where, suffix, has, lacks in (
        ("images have no label", derivatives, labels[0], image_of[0], labelled),
        *(("labels have no image", raw, suffix, labelled, found) for suffix, found in zip(images, image_of)),
    ):
        missing = sorted(f"{name}_{suffix}.nii.gz" for name in has if name not in lacks)
        if missing and (has is labelled or unlabelled == "refuse"):
            raise FileNotFoundError(f"{len(missing)} of {len(has)} {what}; missing in {where}: {some(missing)}.")
    splits = _splits(folder)
    cases: list[Case] = []
    for name, path in image_of[0].items():
        if name not in labelled:
            continue
        paths = [found[name] for found in image_of]
        by_class = {c: found[name] for c, found in zip(classes or [""], label_of) if name in found}
        case: Case = {
            "image": path if isinstance(image, str) else paths,
            "label": by_class if classes else by_class[""],
        }
        case["patient"] = name.split("_")[0]
        if not isinstance(image, str):
            case["name"] = name
        if splits:
            if case["patient"] not in splits:
                raise ValueError(f"{folder / 'participants.tsv'}: its column split has no value for some subjects.")
            case["split"] = splits[case["patient"]]
        cases.append(case)
    return cases


def raw_files(folder: Path) -> dict[str, str]:
    """Path of each image in the subjects' folders by its path below them, without suffix."""
    return _below(folder, "rawdata/sub-" if (folder / "rawdata").is_dir() else "sub-", "sub-")


def derived_files(folder: Path, pipeline: str = "") -> dict[str, str]:
    """Path of each file in ``derivatives`` by its path below the folder or one in it, without suffix."""
    return _below(folder, "/".join(["derivatives", *filter(None, [pipeline.strip("/")])]) + "/", "")


def _below(folder: Path, start: str, keep: str) -> dict[str, str]:
    found = [(item.key, item.path) for item in list_items(folder) if item.key.startswith(start)]
    return {keep + key[len(start) :]: path for key, path in found}


def _by_entities(files: dict[str, str], suffix: str) -> dict[str, str]:
    """Files of a BIDS suffix by what their names say before it: ``sub-0001_ses-0001``."""
    found: dict[str, str] = {}
    for key, path in files.items():
        stem = key.rpartition("/")[2]
        if not stem.startswith("sub-") or not stem.endswith(f"_{suffix}"):
            continue
        name = stem.removesuffix(f"_{suffix}")
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name; keep one of them.")
        found[name] = path
    return found


def _splits(folder: Path) -> dict[str, str]:
    """Part of the split by subject, where ``participants.tsv`` says it."""
    rows = read_table(folder / "participants.tsv")
    if not rows or "split" not in rows[0]:
        return {}
    said = {row.get("participant_id") or "": (row.get("split") or "").lower() for row in rows}
    if unknown := sorted(set(said.values()) - set(SPLITS)):
        raise ValueError(f"{folder / 'participants.tsv'}: split is {unknown[0]!r}; it must be train, val or test.")
    return {subject: SPLITS[part] for subject, part in said.items()}


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with tabs between its columns; none where it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return list(csv.DictReader(file, delimiter="\t"))
