"""Lists of cases, ``[{"image": path, "label": path, "patient": name}]``, from the folder layouts data come in."""

from __future__ import annotations

import re
from pathlib import Path

from monai.data import load_decathlon_datalist

__all__ = ["decathlon_datalist", "images_datalist", "name_without_suffix", "paired_folders_datalist"]

Datalist = list[dict[str, str]]


def name_without_suffix(path: str | Path) -> str:
    """Name of a file or folder without ``.nii.gz``, ``.seg.nrrd``, ``.png`` and the like.

    A suffix begins with a letter: names with dots in them, above all DICOM's UIDs (1.2.840...), are kept whole.
    """
    return re.sub(r"(?<=.)(\.[A-Za-z]\w*)+$", "", Path(path).name)


def _existing_folder(path: str | Path, what: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No {what} at {folder.absolute()}. Name the folder of the images with --dataset_dir FOLDER."
        )
    return folder


def decathlon_datalist(dataset_dir: str | Path) -> Datalist:
    """Labelled cases of a Medical Segmentation Decathlon folder (``dataset.json``, ``imagesTr``, ``labelsTr``).

    Each file is one patient, as in the Decathlon's tasks. Cases that ``dataset.json`` lists and that are not there at
    all (part of a data set was copied) are left out; an image without its label, or the reverse, is an error.

    Raises:
        FileNotFoundError: no such folder, no ``dataset.json``, an image or label missing, or no case at all.
    """
    folder = _existing_folder(dataset_dir, "data set folder")
    index = folder / "dataset.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} is missing: {folder} is not a Decathlon folder (dataset.json, imagesTr, labelsTr)."
        )
    try:
        cases = load_decathlon_datalist(str(index), is_segmentation=True, data_list_key="training")
        pairs = [(Path(case["image"]), Path(case["label"])) for case in cases]
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{index} is not a Decathlon dataset.json with a list 'training' of images and labels: {err!r}"
        ) from err
    datalist: Datalist = []
    for image, label in pairs:
        if not image.exists() and not label.exists():
            continue
        for path, other in ((image, label), (label, image)):
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing, but its counterpart {other} is there.")
        datalist.append({"image": str(image), "label": str(label), "patient": name_without_suffix(image)})
    if not datalist:
        raise FileNotFoundError(f"None of the {len(pairs)} cases that {index} lists is in {folder}.")
    return datalist


def paired_folders_datalist(
    dataset_dir: str | Path, images: str = "images", labels: str = "masks", patient: str = r"(.+)"
) -> Datalist:
    """Labelled cases of two folders in which an image and its label have the same name, up to the suffix.

    An entry may be a file of any format MONAI reads, or a folder with the slices of a DICOM series.

    Args:
        dataset_dir: the folder that holds both.
        images: name of the images' folder.
        labels: name of the labels' folder.
        patient: regular expression whose first group, matched at the start of a name without suffix, is the patient.
            The default makes each image a patient of its own; ``r"([^_]+)_"`` takes all before the first underscore.

    Raises:
        FileNotFoundError: a folder is missing, an image has no label, or there is no image.
        ValueError: a name that ``patient`` does not match, or two images of one name.
    """
    folder = _existing_folder(dataset_dir, "data set folder")
    found: list[dict[str, Path]] = []
    for name in (images, labels):
        by_stem: dict[str, Path] = {}
        for path in sorted(_existing_folder(folder / name, f"folder '{name}' of the data set").iterdir()):
            if path.name.startswith("."):
                continue
            stem = name_without_suffix(path)
            if stem in by_stem:
                raise ValueError(f"{by_stem[stem]} and {path} have the same name; which of them is meant?")
            by_stem[stem] = path
        found.append(by_stem)
    image_of, label_of = found
    if not image_of:
        raise FileNotFoundError(f"No image in {folder / images}.")
    missing = [str(path) for stem, path in image_of.items() if stem not in label_of]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(image_of)} images have no label of the same name in {folder / labels}: "
            f"{', '.join(missing[:5])}."
        )
    datalist: Datalist = []
    for stem, image in image_of.items():
        match = re.match(patient, stem)
        if match is None:
            raise ValueError(f"The pattern {patient!r} finds no patient in the name of {image}.")
        datalist.append({"image": str(image), "label": str(label_of[stem]), "patient": match.group(1)})
    return datalist


def images_datalist(path: str | Path) -> Datalist:
    """Cases to segment, ``[{"image": path}]``: one file, every entry of a folder, or the one series of a DICOM folder.

    Raises:
        FileNotFoundError: nothing at ``path``, or an empty folder.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [{"image": str(root)}]
    if not root.is_dir():
        raise FileNotFoundError(f"No image and no folder of images at {root.absolute()}; name one with --dataset_dir.")
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    if not entries:
        raise FileNotFoundError(f"The folder {root.absolute()} is empty.")
    if all(entry.is_file() and _is_dicom(entry) for entry in entries):
        return [{"image": str(root)}]
    return [{"image": str(entry)} for entry in entries]


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"
