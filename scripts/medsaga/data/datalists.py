"""Lists of cases, ``[{"image": path, "label": path, "patient": name}]``, from the folder layouts data come in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from medsaga.reading import PICTURES, VOLUMES, name_without_suffix, suffix_of
from medsaga.reading.dicom import is_dicom
from medsaga.reading.names import is_series

from .found_images import find_images, some

__all__ = [
    "bids_datalist",
    "decathlon_datalist",
    "images_datalist",
    "paired_folders_datalist",
]

Datalist = list[dict[str, str]]

logger = logging.getLogger(__name__)


def _existing_folder(path: str | Path, what: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No {what} at {folder.absolute()}. Name the folder of the images with --dataset_dir FOLDER."
        )
    return folder


def decathlon_datalist(dataset_dir: str | Path, lists: Sequence[str] = ("training",)) -> Datalist:
    """Labelled cases of a Medical Segmentation Decathlon folder (``dataset.json``, ``imagesTr``, ``labelsTr``).

    Each file is one patient, as in the Decathlon's tasks. Which files are cases is what ``dataset.json`` says: files
    that it does not name are not looked at. Cases that it names and that are not there at all (part of a data set was
    copied) are left out with a warning; an image without its label, or the reverse, is an error.

    Args:
        dataset_dir: the folder with ``dataset.json``.
        lists: names of the lists of labelled cases to take from ``dataset.json``, one after the other, those that it
            has. The Decathlon labels ``training`` only, AMOS also ``validation`` (``imagesVa``, ``labelsVa``).

    Raises:
        FileNotFoundError: no such folder, no ``dataset.json``, an image or label missing, or no case at all.
        ValueError: a ``dataset.json`` that cannot be read or has none of the lists.
    """
    folder = _existing_folder(dataset_dir, "data set folder")
    index = folder / "dataset.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} is missing: {folder} is not a Decathlon folder (dataset.json, imagesTr, labelsTr)."
        )
    try:
        content = json.loads(index.read_text())
        named = [name for name in lists if name in content]
        if not named:
            raise KeyError(*lists)
        pairs = [
            tuple(_inside(folder, case[key]) for key in ("image", "label")) for name in named for case in content[name]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        wanted = " or ".join(f"'{name}'" for name in lists)
        raise ValueError(
            f"{index} is not a Decathlon dataset.json with a list {wanted} of images and labels: {err!r}"
        ) from err
    datalist: Datalist = []
    absent: list[str] = []
    for image, label in pairs:
        if not image.exists() and not label.exists():
            absent.append(name_without_suffix(image))
            continue
        for path, other in ((image, label), (label, image)):
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing, but its counterpart {other} is there.")
        datalist.append({"image": str(image), "label": str(label), "patient": name_without_suffix(image)})
    if not datalist:
        raise FileNotFoundError(f"None of the {len(pairs)} cases that {index} lists is in {folder}.")
    if absent:
        logger.warning(
            f"{len(absent)} of the {len(pairs)} cases that {index} lists are not in {folder}, neither image nor label, "
            f"and are left out: {some(absent)}."
        )
    return datalist


def _inside(folder: Path, path: str) -> Path:
    """A path that an index names, in the folder of the index; Windows' backslashes separate, too."""
    relative = Path(path.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{path!r} lies outside of {folder}")
    return folder / relative


def bids_datalist(dataset_dir: str | Path, image: str, label: str) -> Datalist:
    """Labelled cases of a BIDS data set whose labels are in its folder ``derivatives``, as that of ISLES 2022.

    ``sub-0001/ses-0001/dwi/sub-0001_ses-0001_dwi.nii.gz`` is the image of
    ``derivatives/sub-0001/ses-0001/sub-0001_ses-0001_msk.nii.gz`` for the suffixes ``dwi`` and ``msk``: the names up to
    the suffix are equal, and which folders of the subject lie between does not matter. Subjects are looked for in
    ``rawdata`` where there is such a folder. A subject is one patient, whatever the number of its sessions.

    Args:
        dataset_dir: the folder that holds ``derivatives`` and the subjects or ``rawdata``.
        image: last part of the images' names, such as ``dwi``, ``adc`` or ``FLAIR``.
        label: last part of the labels' names, such as ``msk``.

    Raises:
        FileNotFoundError: no such folder, no image, an image without its label, or the reverse.
        ValueError: two images, or two labels, of one name.

    Source: Brain Imaging Data Structure, https://bids-specification.readthedocs.io/
    """
    folder = _existing_folder(dataset_dir, "data set folder")
    raw = folder / "rawdata" if (folder / "rawdata").is_dir() else folder
    derivatives = _existing_folder(folder / "derivatives", "folder 'derivatives' of the data set")
    image_of = _by_entities(raw, ("sub-*",), image)
    label_of = _by_entities(derivatives, ("sub-*", "*/sub-*"), label)  # the second as BIDS has it, one folder a method
    if not image_of:
        raise FileNotFoundError(
            f"No image sub-*_{image}.nii.gz in the subjects' folders of {raw}: is this the BIDS folder that holds them?"
        )
    for what, where, suffix, has, lacks in (
        ("images have no label", derivatives, label, image_of, label_of),
        ("labels have no image", raw, image, label_of, image_of),
    ):
        missing = [f"{name}_{suffix}.nii.gz" for name in has if name not in lacks]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of {len(has)} {what}; missing in {where}: {some(missing)}.")
    return [
        {"image": str(path), "label": str(label_of[name]), "patient": name.split("_")[0]}
        for name, path in image_of.items()
    ]


def _by_entities(folder: Path, subjects: Sequence[str], suffix: str) -> dict[str, Path]:
    """Files of a BIDS suffix in the subjects' folders by what their names say before it: ``sub-0001_ses-0001``."""
    found: dict[str, Path] = {}
    for path in sorted(p for subject in subjects for p in folder.glob(f"{subject}/**/sub-*_{suffix}.nii*")):
        name = name_without_suffix(path).removesuffix(f"_{suffix}")
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name; which of them is meant?")
        found[name] = path
    return found


def paired_folders_datalist(
    dataset_dir: str | Path, images: str = "images", labels: str = "masks", patient: str = r"(.+)"
) -> Datalist:
    """Labelled cases of two folders in which an image and its label have the same name, up to the suffix.

    An entry may be a file of any format that is read (:func:`~medsaga.reading.open_image`), or a folder with the slices
    of a DICOM series. Files of other kinds are passed over with a warning.

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
            if path.is_file() and suffix_of(path) not in (*VOLUMES, *PICTURES) and not is_dicom(path):
                logger.warning(f"{path} is of no format that is read and is passed over.")
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
            f"{some(missing)}."
        )
    datalist: Datalist = []
    for stem, image in image_of.items():
        match = re.match(patient, stem)
        if match is None:
            raise ValueError(f"The pattern {patient!r} finds no patient in the name of {image}.")
        datalist.append({"image": str(image), "label": str(label_of[stem]), "patient": match.group(1)})
    return datalist


def images_datalist(path: str | Path) -> Datalist:
    """Cases to segment, ``[{"image": path, "name": name}]``, see :func:`~medsaga.data.found_images.find_images`.

    Args:
        path: an image file; a folder, searched with the folders in it; or ``FOLDER/SERIES_INSTANCE_UID``, one DICOM
            series of a folder that holds several.

    Raises:
        FileNotFoundError: nothing at ``path``, or no image in the folder.
        ValueError: two images whose outputs would have the same name.
    """
    root = Path(path).expanduser()
    if root.is_file() or is_series(root):
        return [{"image": str(root), "name": name_without_suffix(root)}]
    if not root.is_dir():
        raise FileNotFoundError(f"No image and no folder of images at {root.absolute()}; name one with --dataset_dir.")
    cases = find_images(root)
    if not cases:
        raise FileNotFoundError(
            f"No image in {root.absolute()} or the folders in it; looked for *{', *'.join((*VOLUMES, *PICTURES))} and "
            "for folders of DICOM files."
        )
    return cases
