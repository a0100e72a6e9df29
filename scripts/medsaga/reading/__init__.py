from .image import Grid, ImageFile, ReadingError, max_image_bytes, reason
from .names import ARRAYS, PICTURES, VOLUMES, name_without_suffix, suffix_of
from .open import open_image

__all__ = [
    "ARRAYS",
    "PICTURES",
    "VOLUMES",
    "Grid",
    "ImageFile",
    "ReadingError",
    "max_image_bytes",
    "name_without_suffix",
    "open_image",
    "reason",
    "suffix_of",
]
