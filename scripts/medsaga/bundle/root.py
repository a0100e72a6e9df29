"""Where a bundle is, for configs that are run from the repository's root or from the bundle itself."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

__all__ = ["bundle_folder", "find_base", "find_bundle"]


def find_bundle(name: str) -> str:
    """Folder of bundle ``name``: that of the config that ``python -m monai.bundle`` was given, the working directory
    itself, or ``bundles/name`` in it or one of its parents.

    MONAI gives a config no way to know its own place; ``--bundle_root FOLDER`` overrides what is found here.

    Raises:
        FileNotFoundError: with the places looked at.
    """
    here = Path.cwd()
    # words of this process's command line: a file, or a list of files with brackets and quotes
    files = [Path(file) for word in sys.argv[1:] for file in re.findall(r"[^\[\]'\",=]+\.json", word)]
    places = [file.parent.parent for file in files if file.parent.name == "configs"]
    places += [here] if here.name == name else []
    places += [folder / "bundles" / name for folder in (here, *here.parents)]
    for place in places:
        if (place / "configs" / "metadata.json").is_file():
            return os.path.relpath(place)
    raise FileNotFoundError(
        f"Bundle '{name}' is not in {here} nor in a folder 'bundles' above it; name it with --bundle_root FOLDER."
    )


def bundle_folder(bundle: str | Path, holds: str = "configs/metadata.json") -> Path:
    """Folder of a bundle that a user names.

    Args:
        bundle: its folder, or its name, as for :func:`find_bundle`.
        holds: file by which a folder is recognised as a bundle.

    Raises:
        FileNotFoundError: no such bundle.
    """
    return Path(bundle) if (Path(bundle) / holds).is_file() else Path(find_bundle(str(bundle)))


def find_base() -> Path:
    """Folder of the template that all bundles are written from: ``bundles/base`` in the working directory or one of its
    parents, else in the checkout that this package was installed from.

    Raises:
        FileNotFoundError: none of them is there.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if (folder / "bundles" / "base" / "dataset.json").is_file():
            return folder / "bundles" / "base"
    raise FileNotFoundError(f"No template bundles/base in {here} or above it: run this in a checkout of medsaga.")
