"""Checks of ``metadata.json``: its schema, its versions, and whether it belongs to this bundle."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

from .bundle import Bundle
from .findings import skip_without

__all__ = ["data_formats", "of_this_bundle", "required_packages", "schema", "version"]

_SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")


def schema(bundle: Bundle) -> Iterator[str]:
    """MONAI's schema of 2024-07-25, which this package brings along."""
    content = json.loads(_SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(content, default=jsonschema.Draft7Validator)(content)
    for error in validator.iter_errors(bundle.metadata):
        where = "#".join(map(str, error.absolute_path)) or "metadata.json"
        yield f"metadata.json, {where}: {error.message[:300]}."


def version(bundle: Bundle) -> Iterator[str]:
    """The changelog has an entry for the version."""
    found, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog")
    if not isinstance(found, str) or not re.fullmatch(r"\d+\.\d+\.\d+(\S*)", found):
        yield f"metadata.json: version is {found!r}; it must be three numbers, such as 0.1.0."
    if not isinstance(changelog, dict) or not changelog:
        yield "metadata.json: changelog is missing; it must say what is new in each version."
    elif found not in changelog:
        yield f"metadata.json: changelog has no entry for its version {found!r}; add what is new in it."


def required_packages(bundle: Bundle) -> Iterator[str]:
    """Required packages have a valid name and version."""
    required = bundle.metadata.get("required_packages_version")
    skip_without(isinstance(required, dict) and required, "no packages are required")
    for package, wanted in required.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", package) or not re.match(r"\d", str(wanted)):
            yield f"metadata.json: required_packages_version has {package!r}: {wanted!r}; give a name and a version."
    if bundle.own and "medsaga" not in required:
        yield "metadata.json: required_packages_version lacks medsaga, but the configs use its classes."
    elif bundle.own and required["medsaga"] != (here := importlib.metadata.version("medsaga")) and bundle.published:
        yield f"metadata.json: required_packages_version has medsaga {required['medsaga']}, but {here} is installed."


def data_formats(bundle: Bundle) -> Iterator[str]:
    """Numbers of channels and their names agree."""
    for key, formats in bundle.metadata.items():
        if not key.endswith("_data_format") or not isinstance(formats, dict):
            continue
        for side in ("inputs", "outputs"):
            for name, one in (formats.get(side) or {}).items():
                where = f"metadata.json, {key}#{side}#{name}:"
                number, named = one.get("num_channels"), one.get("channel_def")
                if not isinstance(named, dict) or not isinstance(number, int):
                    continue
                if sorted(named) != sorted(map(str, range(len(named)))):
                    yield f"{where} channel_def has the numbers {', '.join(named)}; they must run from 0."
                # a label map has one channel, and names of values
                if len(named) != number and not (side == "outputs" and number == 1):
                    yield f"{where} num_channels is {number}, but channel_def names {len(named)}; they must agree."


def of_this_bundle(bundle: Bundle) -> Iterator[str]:
    """``metadata.json`` says of the data what ``dataset.json`` and the configs say: it is no copy of another's."""
    dataset, meta = bundle.dataset, bundle.metadata
    skip_without(dataset is not None or bundle.own, "there is neither dataset.json nor a config of medsaga")
    inputs, outputs = (next(iter(_format(meta).get(side, {}).values()), {}) for side in ("inputs", "outputs"))
    found: dict[str, Any] = {
        "class_names": list((outputs.get("channel_def") or {}).values()),
        "image_size": (inputs.get("spatial_shape") or [None])[0],
        "modality": inputs.get("modality"),
        **{key: meta.get(other) for key, other in _SAME.items()},
    }
    if dataset is not None:
        for key in (*_SAME, "class_names", "modality", "image_size"):
            if key in dataset and dataset[key] != found[key]:
                yield _stale(key, found[key], dataset[key], "dataset.json")
        if (model := dataset.get("model_name")) and model not in str(meta.get("name")):
            yield _stale("name", meta.get("name"), model, "dataset.json")
    for name in ("train", "inference"):
        if name in bundle.configs:
            config = bundle.config(name)
            for key in ("class_names", "image_size"):
                if key in config and config[key] != found[key]:
                    yield _stale(key, found[key], config[key], f"{name}.json")
            channels = config.get("channel_names")
            if channels not in (None, ["image"]) and channels != list((inputs.get("channel_def") or {}).values()):
                yield _stale("channels of the image", inputs.get("channel_def"), channels, f"{name}.json")


_SAME = {"task": "task", "description": "description", "source": "data_source", "authors": "authors"}


def _format(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata.get("network_data_format") or {}


def _stale(key: str, found: Any, wanted: Any, where: str) -> str:
    return (
        f"metadata.json has for {key} {found!r}, but {where} has {wanted!r}. If metadata.json is another bundle's, "
        "write it anew: python -m medsaga.bundle write."
    )
