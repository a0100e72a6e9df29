"""Which methods a training may use: the bundle's own, or overlays of it whose weights the app can serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medsaga.bundle.methods import METHODS, OF_VOLUMES

__all__ = ["CHOOSE", "SERVED_METHODS", "WITH_UNLABELLED", "methods_to_train", "overlays_of"]

logger = logging.getLogger(__name__)

SERVED_METHODS = [name for name in METHODS if name not in OF_VOLUMES]
CHOOSE = "choose"
WITH_UNLABELLED = "with unlabelled"


def methods_to_train(method: str, held_back: Sequence[str], unlabelled: Sequence[dict]) -> list[str]:
    """The methods that one request trains, one after the other.

    Args:
        method: of the request: a name, or :data:`CHOOSE` for all that the labels allow.
        held_back: cases to score by; without any, nothing can be chosen.
        unlabelled: images without a label.

    Raises:
        ValueError: images without a label are asked for, and there is none.
    """
    if method == WITH_UNLABELLED and not unlabelled:
        raise ValueError("method 'with unlabelled': every image has a label, but this method needs images without one.")
    if method != CHOOSE:
        return [method]
    if not held_back:
        logger.warning("There are too few labels to hold any back and compare methods: %s is used.", SERVED_METHODS[0])
        return SERVED_METHODS[:1]
    return [name for name in SERVED_METHODS if name != WITH_UNLABELLED or unlabelled]


def overlays_of(method: str, bundle: Path) -> list[str]:
    """Paths of a method's overlays, which lie in the folder ``methods`` beside the bundle.

    Raises:
        FileNotFoundError: one is not there.
    """
    files = [bundle.parent / "methods" / name for name in METHODS[method]]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"method {method!r} needs {file.name} in a folder 'methods' beside the bundle.")
    return [str(file) for file in files]
