"""Export a trained bundle as a zip file, as in MONAI's model zoo."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml

from medsaga.bundle.network import load_network
from medsaga.download import checksum_of
from medsaga.files import replacing
from medsaga.records import trained_plane
from medsaga.verify import verify_folder

from .card import card, eval_metrics, installed_versions, measured, new_version, training_sentence
from .clean import clean_config, clean_text
from .model_files import write_onnx, write_torchscript

__all__ = ["FORMS", "PLACEHOLDER", "export_bundle"]

logger = logging.getLogger(__name__)

_CONFIGS = ("train", "inference", "evaluate", "multi_gpu_train")
_LEFT_OUT = ("metadata", "split")  # the first is written anew; the second names patients
_DOCS = ("README.md", "data_license.txt")
_LARGE = 25_000_000  # bytes; the zoo's repository takes no larger files
PLACEHOLDER = "FILL-IN/"  # of addresses that the publisher has not given
FORMS = ("ts", "onnx")  # TorchScript and ONNX


def export_bundle(
    bundle: Path,
    output: Path,
    version: str | None = None,
    changes: str | None = None,
    url_prefix: str = PLACEHOLDER,
    forms: Collection[str] = FORMS,
) -> list[str]:
    """Write a trained bundle as a zip file that runs with the package ``medsaga`` alone.

    It holds configs, docs, licence, weights (``models/model.pt``), TorchScript and ONNX. It has no path of this machine
    and no name of a patient. Therefore the training record, by which evaluation refuses patients that were learnt from,
    is not included.

    Args:
        bundle: its folder, with ``models/model.pt``. It is not changed.
        output: the zip file; one that is there is replaced.
        version: of what is written, three numbers; None keeps that of ``metadata.json``.
        changes: what is new in it, for the changelog.
        url_prefix: the address under which files of more than 25 MB will lie, for ``large_files.yml``.
        forms: of :data:`FORMS`, those to write beside the weights.

    Returns:
        notes for the publisher, a sentence each.

    Raises:
        FileNotFoundError: a file that a bundle must have is missing.
        RuntimeError: packages are missing, with what to install.
        ValueError: the weights do not fit, or the result fails a check of :mod:`medsaga.verify`; nothing is written.
    """
    name = bundle.resolve().name
    _existing(bundle / "models" / "model.pt")
    if output.suffix != ".zip":
        raise ValueError(f"--output is {output}; its name must end in .zip.")
    with tempfile.TemporaryDirectory(prefix="medsaga-export-") as work:
        folder = Path(work) / name
        notes = _write_texts(bundle, folder, version, changes)
        _write_models(bundle, folder, forms)
        notes += _list_large_files(folder, url_prefix)
        failed = [finding for finding in verify_folder(folder, published=True, source=bundle) if finding.failed]
        if failed:
            raise ValueError(f"{bundle} cannot be exported until these checks pass:\n" + "\n".join(map(str, failed)))
        with replacing(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                file.write(path, Path(name, path.relative_to(folder)).as_posix())
    return notes


def _write_texts(bundle: Path, folder: Path, version: str | None, changes: str | None) -> list[str]:
    """Configs and docs; returns notes."""
    name = folder.name
    found = [path.stem for path in sorted((bundle / "configs").glob("*.json")) if path.stem not in _LEFT_OUT]
    read = {
        key: json.loads(_existing(bundle / "configs" / f"{key}.json").read_text(encoding="utf-8"))
        for key in dict.fromkeys((*_CONFIGS, *found))
    }
    if plane := trained_plane(_existing(bundle / "models" / "model.pt")):  # the weights' record is not handed on
        read["train"]["plane"] = read["inference"]["plane"] = plane
    dataset_dir = read["train"]["dataset_dir"]
    (folder / "configs").mkdir(parents=True)
    (folder / "docs").mkdir()
    for key, config in read.items():
        _write_json(folder / "configs" / f"{key}.json", clean_config(config, dataset_dir, name))
    shutil.copyfile(_existing(bundle / "configs" / "logging.conf"), folder / "configs" / "logging.conf")
    shutil.copyfile(_existing(bundle / "LICENSE"), folder / "LICENSE")

    scores, missing = measured(bundle)
    metadata = json.loads(
        clean_text(_existing(bundle / "configs" / "metadata.json").read_text(encoding="utf-8"), dataset_dir, name)
    )
    metadata |= installed_versions(metadata) | new_version(metadata, version, changes)
    metadata["eval_metrics"] = eval_metrics(scores)
    _write_json(folder / "configs" / "metadata.json", metadata)
    for file in _DOCS:
        text = clean_text(_existing(bundle / "docs" / file).read_text(encoding="utf-8"), dataset_dir, name)
        if file == "README.md":
            text = card(text, name, metadata, scores, training_sentence(bundle / "models" / "model.pt"))
        (folder / "docs" / file).write_text(text, encoding="utf-8")
    notes = [f"No scores: {missing}."] if missing else []
    if read["train"].get("split") is not None:
        notes.append("train.json draws a new split: the bundle's own split names patients, so it is left out.")
    return notes


def _write_models(bundle: Path, folder: Path, forms: Collection[str]) -> None:
    network, _ = load_network(str(bundle))
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    models = folder / "models"
    models.mkdir()
    # the network's own state dict: that of the file, without the record of patients beside it
    torch.save(network.state_dict(), models / "model.pt")
    if "ts" in forms:
        write_torchscript(network, models / "model.ts", channels, metadata)
    if "onnx" in forms:
        write_onnx(network, models / "model.onnx", channels)


def _list_large_files(folder: Path, url_prefix: str) -> list[str]:
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > _LARGE):
        place = path.relative_to(folder).as_posix()
        kind, checksum = checksum_of(path, "sha256").split(":")
        entries.append({"path": place, "url": url_prefix + place, "hash_val": checksum, "hash_type": kind})
    if not entries:
        return []
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}, sort_keys=False))
    if url_prefix != PLACEHOLDER:
        return []
    files = ", ".join(entry["path"] for entry in entries)
    return [
        f"large_files.yml has no address for {files}: export again with --url-prefix, or write the address into it."
    ]


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "train the bundle first" if path.name == "model.pt" else "a bundle must have it"
        raise FileNotFoundError(f"{path} does not exist: {what}.")
    return path


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
