"""Two folders in which an image and its label have the same name."""

from __future__ import annotations

import logging
from pathlib import Path

from medsaga.data.found_images import some
from medsaga.reading import PICTURES, VOLUMES, name_without_suffix, suffix_of
from medsaga.reading.dicom import is_dicom

from .layout import Case, existing_folder, patient_in

__all__ = ["paired_folders_datalist"]

logger = logging.getLogger(__name__)


def paired_folders_datalist(
    dataset_dir: str | Path, images: str = "images", labels: str = "masks", patient: str = r"(.+)"
) -> list[Case]:
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
    folder = existing_folder(dataset_dir, "data set folder")
    found: list[dict[str, Path]] = []
    for name in (images, labels):
        by_stem: dict[str, Path] = {}
        for path in sorted(existing_folder(folder / name, f"folder '{name}' of the data set").iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_file() and suffix_of(path) not in (*VOLUMES, *PICTURES) and not is_dicom(path):
                logger.warning(f"{path} is skipped, because its format cannot be read.")
                continue
            stem = name_without_suffix(path)
            if stem in by_stem:
                raise ValueError(f"{by_stem[stem]} and {path} have the same name; keep one of them.")
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
    datalist: list[Case] = []
    for stem, image in image_of.items():
        datalist.append(
            {"image": str(image), "label": str(label_of[stem]), "patient": patient_in(stem, patient, image)}
        )
    return datalist
