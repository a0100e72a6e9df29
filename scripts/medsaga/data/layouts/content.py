"""Whether a file is a label, by its values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from medsaga.reading import open_image

__all__ = ["label_values"]

_MOST_VALUES = 64


@lru_cache(maxsize=64)
def label_values(path: str) -> tuple[int, ...] | None:
    """The class numbers of a file, where it looks like a label: few whole numbers from 0 on, one of them 0.

    Returns:
        None for an image, and for a file that cannot be read.
    """
    try:
        values = np.unique(np.asarray(open_image(path, label=True).load()))
    except Exception:  # whatever is wrong with it is found and said when it is used
        return None
    if len(values) > _MOST_VALUES or values[0] < 0 or not np.array_equal(values, np.round(values)) or 0 not in values:
        return None
    return tuple(int(value) for value in values)
