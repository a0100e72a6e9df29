"""Values at places where a scanner has measured nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["replace_padding"]

_LOWEST_HU = -1024  # of what a scanner measures; air is -1000
_LOWEST = -32768  # of 16 bits
_GAP = 100
_SHARE = 0.001


def replace_padding(values: np.ndarray, path: Path) -> tuple[np.ndarray, str | None]:
    """Replace CT's padding outside the field of view (−2000, −2048, −3024, −32768), which spoils percentiles.

    The smallest value is padding if it is a whole number from −32768 to −1025, at least 0.1 % of the voxels have it,
    and the next larger value is at least 100 above it. It becomes that next larger value.

    Args:
        values: of an image, not of a label; changed in place.
        path: is named in the notice.

    Returns:
        the values, and a sentence where some were replaced.
    """
    lowest = values.min()
    if not (_LOWEST <= lowest < _LOWEST_HU and lowest == np.rint(lowest)):
        return values, None
    padding = values == lowest
    share = np.count_nonzero(padding) / values.size
    if share < _SHARE or share == 1:
        return values, None
    following = np.min(values, where=~padding, initial=values.max())
    if float(following) - float(lowest) < _GAP:
        return values, None
    values[padding] = following
    return values, (
        f"{path}: {share:.1%} of its voxels have the value {lowest:g}, and the next larger value is {following:g}; "
        f"such voxels are taken as padding and read as {following:g}."
    )
