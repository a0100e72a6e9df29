"""Images that clients upload, checked before they are stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from fastapi import HTTPException

from lib.names import refusing
from medsaga.reading import max_image_bytes, open_image

__all__ = ["check_image"]

logger = logging.getLogger(__name__)


def check_image(image_id: str, file: str, ext: str, extensions: Sequence[str]) -> None:
    """Read an image to its end.

    Args:
        image_id: is named in errors.
        file: the image.
        ext: suffix of its name.
        extensions: patterns of the names that are taken.

    Raises:
        HTTPException: 413 for a file beyond ``MEDSAGA_MAX_IMAGE_GB``, 422 for one that is no image or damaged.
    """
    known = [pattern.replace("*", "") for pattern in extensions]
    if ext not in known:
        raise HTTPException(
            422, f"{image_id}: the suffix of its file is {ext or 'missing'}; expected {', '.join(known)}."
        )
    size = os.path.getsize(file)
    if size > max_image_bytes():
        raise HTTPException(
            413,
            f"{image_id}: it has {size / 1e9:.2f} GB, but this server takes at most {max_image_bytes() / 1e9:g} GB "
            "(MEDSAGA_MAX_IMAGE_GB). Put the file into the studies folder instead.",
        )
    with refusing(file, image_id):
        image = open_image(file)
        image.load()  # to its end
    for notice in image.notices:
        logger.warning(notice.replace(file, image_id))
    grid = image.grid
    if grid.rank not in (2, 3):
        raise HTTPException(422, f"{image_id}: it has the shape {grid.shape}; expected a 2-D image or one volume.")
    if grid.rank == 3 and grid.channels != 1:
        raise HTTPException(
            422,
            f"{image_id}: it is a 4-D image with {grid.channels} volumes; expected one. Save the sequence to segment "
            "as a file of its own, or put the file into the studies folder of a bundle that takes so many.",
        )
