"""Lists of cases to segment, from a file or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medsaga.reading import ARRAYS, PICTURES, VOLUMES, name_without_suffix
from medsaga.reading.names import is_series

from .found_images import find_images

__all__ = ["Datalist", "images_datalist"]

Datalist = list[dict[str, str]]


def images_datalist(path: str | Path, sequences: Sequence[str] | None = None) -> Datalist:
    """Cases to segment, ``[{"image": path, "name": name}]``, see :func:`~medsaga.data.found_images.find_images`.

    Args:
        path: an image file; a folder, searched with the folders in it; or ``FOLDER/SERIES_INSTANCE_UID``, one DICOM
            series of a folder that holds several.
        sequences: ends of the file names, without suffix, of an examination, one for each sequence. A folder's cases
            are then the files of the first sequence; :class:`~medsaga.transforms.ReadImaged` finds the others beside
            them.

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
            f"No image in {root.absolute()} or the folders in it; looked for "
            f"*{', *'.join((*VOLUMES, *PICTURES, *ARRAYS))} and for folders of DICOM files."
        )
    if sequences:
        cases = [case for case in cases if name_without_suffix(case["image"]).endswith(sequences[0])]
        if not cases:
            raise FileNotFoundError(
                f"No file in {root.absolute()} or the folders in it has a name that ends with {sequences[0]!r}, "
                f"the end for this bundle's first sequence (all sequences: {', '.join(sequences)})."
            )
    return cases
