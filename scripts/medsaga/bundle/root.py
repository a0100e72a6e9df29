"""Where a bundle is, for configs that are run from the repository's root or from the bundle itself."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["find_bundle"]


def find_bundle(name: str) -> str:
    """Folder of bundle ``name``: the working directory itself, or ``bundles/name`` in it or one of its parents.

    MONAI gives a config no way to know its own place; ``--bundle_root FOLDER`` overrides what is found here.

    Raises:
        FileNotFoundError: with the places looked at.
    """
    here = Path.cwd()
    places = [here] if here.name == name else []
    places += [folder / "bundles" / name for folder in (here, *here.parents)]
    for place in places:
        if (place / "configs" / "metadata.json").is_file():
            return os.path.relpath(place)
    raise FileNotFoundError(
        f"Bundle '{name}' is not in {here} nor in a folder 'bundles' above it; name it with --bundle_root FOLDER."
    )
