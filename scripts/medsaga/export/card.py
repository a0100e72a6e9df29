"""Texts that accompany published weights: measured scores, numbers of patients, versions."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from medsaga.records import read_record

__all__ = ["card", "eval_metrics", "installed_versions", "measured", "new_version", "training_sentence"]

_FROM_METADATA = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


def measured(bundle: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The scores of ``output/evaluation/metrics.json``.

    Args:
        bundle: its folder.

    Returns:
        the file's content, and why there is none (empty where there is).
    """
    file, model = bundle / "output" / "evaluation" / "metrics.json", bundle / "models" / "model.pt"
    if not file.is_file():
        return {}, f"{file} does not exist: run evaluate.json, so that the model card has measured scores"
    if file.stat().st_mtime < model.stat().st_mtime:
        return {}, f"{file} is older than {model}, so its scores are of other weights: evaluate again"
    return json.loads(file.read_text()), ""


def eval_metrics(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Scores as ``eval_metrics`` of ``metadata.json``: means over the test patients, by measure and class."""
    return {
        f"{measure}_{name}" if name != "mean" else f"mean_{measure}": round(values[measure]["mean"], 4)
        for name, values in scores.items()
        for measure in ("dice", "hd95")
        if values[measure]["mean"] is not None
    }


def training_sentence(model: Path) -> str:
    """A sentence on the training record in the weights, without names of patients."""
    record = read_record(model)
    if record is None:
        return "The weights have no record of their training: the number of patients is not known."
    numbers = [f"{what} {len(record[part])}" for part, what in _PARTS.items()]
    text = f"Patients of the training: {', '.join(numbers)} (seed {record['seed']})."
    if record["learnt_before"]:
        text += f" The weights that it started from had learnt from {len(record['learnt_before'])} further patients."
    if record["unseen_classes"]:
        text += f" No training slice shows: {', '.join(record['unseen_classes'])}."
    return text


_PARTS = {"train": "learnt from", "validation": "for the choice of the epoch", "test": "kept for the test"}


def new_version(metadata: dict[str, Any], version: str | None, changes: str | None) -> dict[str, Any]:
    """``version`` and ``changelog`` of ``metadata.json`` with an entry more.

    Raises:
        ValueError: one is given without the other; a version that is not three numbers, or not above the present one.
    """
    old, changelog = metadata["version"], metadata["changelog"]
    if version is None and changes is None:
        return {"version": old, "changelog": changelog}
    if version is None or changes is None:
        raise ValueError("--version and --changes go together: the changelog says what is new in each version.")
    if _numbers(version) is None:
        raise ValueError(f"--version is {version!r}; it must be three numbers, such as 0.2.0.")
    if _numbers(old) is not None and _numbers(version) <= _numbers(old):
        raise ValueError(f"--version is {version}; it must be above {old}, the version in metadata.json.")
    return {"version": version, "changelog": {version: changes, **changelog}}


def _numbers(version: str) -> tuple[int, ...] | None:
    parts = version.split(".")
    return tuple(map(int, parts)) if len(parts) == 3 and all(part.isdecimal() for part in parts) else None


def installed_versions(metadata: dict[str, Any]) -> dict[str, Any]:
    """The versions that ``metadata.json`` names, as they are installed here.

    Raises:
        ValueError: a package that it requires is not installed.
    """

    def installed(package: str) -> str:
        try:
            return importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"metadata.json: required_packages_version names {package}, but it is not installed."
            ) from None

    required = metadata["required_packages_version"]
    return {
        **{key: installed(package) for key, package in _FROM_METADATA.items()},
        "required_packages_version": {package: installed(package) for package in required},
    }


def card(readme: str, name: str, metadata: dict[str, Any], scores: dict[str, dict[str, Any]], training: str) -> str:
    """The model card: the bundle's README, and how to use these weights, their scores and what has changed.

    Args:
        readme: without what belongs to this machine.
        name: of the bundle.
        metadata: of the exported bundle.
        scores: of :func:`measured`.
        training: of :func:`training_sentence`.
    """
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = ", ".join(map(str, ("N", image["num_channels"], *image["spatial_shape"])))
    rows = [
        f"| {row} | {_cell(values['dice'], 3)} | {_cell(values['hd95'], 2)} | {values['dice']['n']} |"
        for row, values in scores.items()
    ]
    table = "\n".join(["| | Dice | HD95 (mm) | cases |", "|---|---|---|---|", *rows])
    sections = [
        "## Use of this bundle",
        f"Version {metadata['version']}. It needs Python and this, besides what it brings along:",
        f"```bash\npip install medsaga=={metadata['required_packages_version']['medsaga']}\n```",
        f"Unpack it, and segment an image or all that a folder holds; masks go to `{name}/output/predictions`:",
        f"```bash\npython -m monai.bundle run evaluating --config_file {name}/configs/inference.json "
        "--dataset_dir FILE_OR_FOLDER\n```",
        f"MONAI Label's sample app `monaibundle` serves it from its folder `model/{name}` with `--conf models {name}`. "
        f"`models/model.ts` (TorchScript) and `models/model.onnx` are the network alone, and need no medsaga: input "
        f"({shape}), preprocessed as described above, output logits of the classes.",
        "## Scores of these weights",
        table if scores else "Not measured.",
        training + " Their names are not in the weights, so evaluation cannot tell whether patients that it scores are "
        "among them.",
        "## Changes",
        "\n".join(f"* {version}: {text}" for version, text in metadata["changelog"].items()),
    ]
    return readme.rstrip() + "\n\n" + "\n\n".join(sections) + "\n"


def _cell(values: dict[str, Any], digits: int) -> str:
    mean, std = values["mean"], values["std"]
    return "–" if mean is None else f"{mean:.{digits}f} ± {std:.{digits}f}"
