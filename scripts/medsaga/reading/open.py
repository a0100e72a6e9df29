"""Open any image that is read here."""

from __future__ import annotations

from pathlib import Path

from .arrays import open_array
from .dicom import is_dicom, open_dicom
from .image import ImageFile, ReadingError
from .names import ARRAYS, PICTURES, VOLUMES, is_series, suffix_of
from .pictures import open_picture
from .volumes import open_volume

__all__ = ["open_image"]


def open_image(path: str | Path, label: bool = False) -> ImageFile:
    """Read and check the header of an image; its values are decoded by the result's ``load()``.

    Formats: NIfTI, NRRD, MetaImage (.mha, .mhd); PNG, JPEG, BMP, TIFF; .npz and .h5 with an image and its label;
    DICOM, as a file (also enhanced multi-frame), as a folder with the slices of one series, or as
    ``FOLDER/SERIES_INSTANCE_UID``, one series of a folder with several.

    Args:
        path: file or folder.
        label: the values are class numbers: colours of pictures are turned into them where that is unambiguous.

    Raises:
        FileNotFoundError: nothing is there.
        ReadingError: naming the file and what is wrong with it.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if path.is_file() and suffix in VOLUMES:
        return open_volume(path, label)
    if path.is_file() and suffix in PICTURES:
        return open_picture(path, label)
    if path.is_file() and suffix in ARRAYS:
        return open_array(path, label)
    if path.is_dir() or is_series(path):
        return open_dicom(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    if is_dicom(path):
        return open_dicom(path)
    raise ReadingError(
        f"{path}: its format cannot be read; expected {', '.join((*VOLUMES, *PICTURES, *ARRAYS))}, or DICOM."
    )
