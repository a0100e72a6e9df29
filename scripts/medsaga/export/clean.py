"""Remove data of the machine and the patients from a bundle's texts and configs."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

__all__ = ["clean_config", "clean_text", "is_machine_path", "machine_paths", "paths_in_text"]

# /workspace is a place in MONAI's containers, the same for everyone
_TOPS = "home|root|Users|mnt|media|tmp|work|data|scratch|opt|srv|var|usr|private|Volumes|gpfs|lustre|nfs|storage"
_IN_TEXT = re.compile(rf"(?<![\w./:@~+\-])(?:/(?:{_TOPS})/[^\s'\"`|<>(),;]+|[A-Za-z]:\\[^\s'\"`|<>(),;]+)")
_OWN_MODEL = "$@bundle_root + '/models/model.pt'"


def is_machine_path(value: str) -> bool:
    """Whether a value of a config is a path on one machine."""
    if value.startswith(("$", "%", "@")):
        # a literal that begins with / is most often the end of a path: @bundle_root + '/models'
        return any(_IN_TEXT.match(literal) for literal in re.findall(r"['\"]([^'\"]+)['\"]", value))
    path = PurePosixPath(value)
    return (path.is_absolute() and len(path.parts) > 1 and path.parts[1] != "workspace") or (
        PureWindowsPath(value).drive != "" and PureWindowsPath(value).is_absolute()
    )


def paths_in_text(text: str) -> list[str]:
    """Paths of a machine in a text for people."""
    return [found.rstrip(".") for found in _IN_TEXT.findall(text)]


def machine_paths(value: Any, name: str = "") -> dict[str, str]:
    """The values of a config that are paths on one machine, by their key (``train#dataset#data``)."""
    if isinstance(value, str):
        return {name: value} if is_machine_path(value) else {}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {k: v for key, item in items for k, v in machine_paths(item, f"{name}#{key}".lstrip("#")).items()}


def clean_config(config: dict[str, Any], dataset_dir: str, name: str) -> dict[str, Any]:
    """A config without paths of this machine and without a split.

    Args:
        config: content of a file of ``configs/``.
        dataset_dir: the training's folder of data, where it is such a path.
        name: of the bundle: its data are expected in ``data/name``, unless a folder is given.

    Returns:
        a copy. Weights that the training started from are those of the bundle instead.
    """
    replaced = {key: _portable(path, dataset_dir, name) for key, path in machine_paths(config).items()}
    if "weights" in replaced:
        replaced["weights"] = _OWN_MODEL

    def copied(value: Any, key: str) -> Any:
        if key in replaced:
            return replaced[key]
        if isinstance(value, dict):
            return {k: copied(item, f"{key}#{k}".lstrip("#")) for k, item in value.items()}
        if isinstance(value, list):
            return [copied(item, f"{key}#{i}".lstrip("#")) for i, item in enumerate(value)]
        return value

    cleaned = copied(config, "")
    return {**cleaned, "split": None} if "split" in cleaned else cleaned  # which names patients, or is such a file


def clean_text(text: str, dataset_dir: str, name: str) -> str:
    """A text for people without paths of this machine and without links into this project's repository."""
    if dataset_dir and is_machine_path(dataset_dir):
        text = text.replace(dataset_dir, f"data/{name}")
    for path in sorted(paths_in_text(text), key=len, reverse=True):
        text = text.replace(path, _portable(path, dataset_dir, name))
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)", r"\1", text)
    text = re.sub(r"from the\s+repository's\s+root", f"from the folder that holds `{name}`", text)
    text = re.sub(r"\bin the\s+repository's\s+root", "of the package medsaga", text)
    return text.replace(f"bundles/{name}/", f"{name}/").replace(f"`bundles/{name}`", f"`{name}`")


def _portable(path: str, dataset_dir: str, name: str) -> str:
    if dataset_dir and (path == dataset_dir or path.startswith(dataset_dir.rstrip("/") + "/")):
        return str(PurePosixPath("data", name, path[len(dataset_dir) :].lstrip("/")))
    return str(PurePosixPath("data", Path(path).name))
