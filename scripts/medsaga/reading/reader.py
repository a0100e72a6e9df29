"""A reader for MONAI that uses this package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from .image import ImageFile
from .open import open_image

__all__ = ["MedicalImageReader"]

logger = logging.getLogger(__name__)


class MedicalImageReader(ImageReader):
    """MONAI reader of all formats that this package opens.

    Pass it to each call of ``LoadImage``, as :class:`~medsaga.transforms.ReadImaged` does. If a reader is only
    registered, ``LoadImage`` also tries MONAI's own readers, which read files that this one refuses.

    Args:
        open_file: from a path to the image, such as :func:`~medsaga.reading.open_image`.
    """

    def __init__(self, open_file: Callable[[PathLike], ImageFile] = open_image) -> None:
        self.open_file = open_file

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True  # a DICOM file may be called anything

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[ImageFile, np.ndarray]:
        """
        Args:
            data: file or folder.

        Raises:
            FileNotFoundError, ReadingError: naming the file.
        """
        (path,) = ensure_tuple(data)
        image = self.open_file(path)
        for notice in image.notices:
            logger.warning(notice)
        return image, image.load()

    def get_data(self, img: tuple[ImageFile, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Returns:
            Values (W, H) or (W, H, D), channels in a last axis, and MONAI's metadata with the affine in RAS.
        """
        image, values = img
        grid = image.grid
        affine = to_affine_nd(len(grid.shape), grid.affine)
        return values, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(grid.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if grid.channels == 1 else -1,
            "placed": grid.placed,
            "unit": grid.unit,
        }
