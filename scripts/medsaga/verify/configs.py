"""Checks of configs, without evaluating any: references, classes, keys, training against inference."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties

from .bundle import Bundle
from .findings import skip_without

__all__ = ["monai_keys", "monai_label_keys", "own_name", "references", "same_in_training", "targets"]

_LABEL_INFERENCE = ("network_def", "preprocessing", "postprocessing", "inferer", "device", "bundle_root")
_LABEL_TRAIN = (
    "bundle_root",
    "device",
    "network",
    "train#trainer#max_epochs",
    "train#dataset#data",
    "train#handlers",
    "validate#dataset#data",
)
_SAME = ("class_names", "channel_names", "sequences", "image_size", "plane")
_SAME_NETWORK = ("encoder", "in_channels", "num_classes", "image_size")
# a key below one that is not there, or a macro
_UNREADABLE = (KeyError, IndexError, ValueError)
# transforms of labels, which only the training's preprocessing has
_LABELS_ONLY = ("MapLabelValued", "AsDiscreted")


def references(bundle: Bundle) -> Iterator[str]:
    """Every ``@x`` and ``%x`` of a config names something in it, or in the configs that it is an overlay of."""
    skip_without(bundle.configs, "there are no configs")
    for name in bundle.configs:
        try:
            _, missing = _parsed(bundle, name)
        except _UNREADABLE as error:
            yield f"{name}: {error}; a key or a macro (%) names something that does not exist."
            continue
        for reference, users in sorted(missing.items()):
            yield f"{name}: {users[0]} refers to {reference!r}, which is not defined; define it or correct the name."


def targets(bundle: Bundle) -> Iterator[str]:
    """Every ``_target_`` can be imported and takes the arguments that it is given."""
    skip_without(bundle.configs, "there are no configs")
    said = set()
    with _on_path(bundle):
        for name in bundle.configs:
            try:
                parser, _ = _parsed(bundle, name)
            except _UNREADABLE:  # reported by the check of references
                continue
            for key, item in parser.ref_resolver.items.items():
                problem = _problem(item, bundle) if isinstance(item, ConfigComponent) else ""
                if problem and problem not in said:  # the same problem occurs in each overlay of a config
                    said.add(problem)
                    yield f"{name}, {key}: {problem}"


def monai_keys(bundle: Bundle) -> Iterator[str]:
    """The keys that MONAI's workflows require (``monai.bundle.properties``)."""
    wanted = {"train": TrainProperties, "inference": InferProperties}
    skip_without(set(wanted) & set(bundle.configs), "there is neither inference.json nor train.json")
    for name, properties in wanted.items():
        if name not in bundle.configs:
            continue
        parser = bundle.parser(name)
        for property_ in properties.values():
            if property_["required"] and property_["id"] not in parser:
                yield f"{name}: {property_['id']} is missing, {property_['description'].strip().rstrip('.')}."
        if not {"run", "evaluating", "training"} & set(bundle.config(name)):
            yield f"{name}: it has no key that can be run; call the steps run (or training, evaluating)."


def monai_label_keys(bundle: Bundle) -> Iterator[str]:
    """The keys and kinds that MONAI Label reads and overrides."""
    apps = bundle.metadata.get("supported_apps") or {}
    label = any("label" in app.lower() for app in apps)
    skip_without(label, "metadata.json does not name MONAI Label in supported_apps")
    if "inference" not in bundle.configs:
        yield "configs/inference.json is missing; MONAI Label serves it."
    else:
        parser = bundle.parser("inference")
        yield from (
            f"inference: {key} is missing; MONAI Label reads it." for key in _LABEL_INFERENCE if key not in parser
        )
    if "train" in bundle.configs:
        parser = bundle.parser("train")
        yield from (f"train: {key} is missing; MONAI Label overrides it." for key in _LABEL_TRAIN if key not in parser)
        if not isinstance(parser.get("train#handlers", []), list):
            yield "train: train#handlers must be a list of dictionaries; MONAI Label adds a loader to it."
        if not isinstance(parser.get("train#trainer#max_epochs", 1), int):
            yield "train: train#trainer#max_epochs must be a number; MONAI Label shows and overrides it."
    outputs = (bundle.metadata.get("network_data_format") or {}).get("outputs") or {}
    if not next(iter(outputs.values()), {}).get("channel_def"):
        yield "metadata.json: network_data_format#outputs#pred#channel_def is missing: clients take the labels from it."


def same_in_training(bundle: Bundle) -> Iterator[str]:
    """Inference reads, prepares and segments as the training did."""
    skip_without({"train", "inference"} <= set(bundle.configs), "train.json or inference.json is missing")
    train, inference = bundle.config("train"), bundle.config("inference")
    pairs = [(key, train.get(key), inference.get(key)) for key in _SAME]
    definitions = train.get("network_def"), inference.get("network_def")
    if all(isinstance(one, dict) for one in definitions):
        pairs += [
            (f"network_def#{key}", *(one.get(key) for one in definitions)) for key in ("_target_", *_SAME_NETWORK)
        ]
    for key, a, b in pairs:
        if a != b and (a is not None or bundle.own) and (b is not None or bundle.own):
            yield f"{key} is {a!r} in train.json and {b!r} in inference.json: give both the value of the training."
    if bundle.own:
        a, b = (_of_image(config) for config in (train, inference))
        if a != b:
            yield "preprocessing of train.json and inference.json differs for the image: make them the same."


def own_name(bundle: Bundle) -> Iterator[str]:
    """A bundle of this package looks for itself under the folder's name."""
    named = {
        (name, found)
        for name in bundle.configs
        for found in re.findall(r"find_bundle\('([^']*)'\)", str(bundle.config(name).get("bundle_root", "")))
    }
    skip_without(named, "the configs do not look for the bundle by its name")
    for name, found in sorted(named):
        if found != bundle.name:
            yield f"{name}: bundle_root looks for {found!r}, but the folder is {bundle.name!r}: give both one name."


def _parsed(bundle: Bundle, name: str) -> tuple[ConfigParser, dict[str, list[str]]]:
    """A config with the base configs that resolve most of its references, and the references that are still missing."""
    parsed, problems = [], []
    for below in ((), ("train",), ("train", "evaluate"), ("inference",)):
        stands_alone = name in ("train", "inference")
        if below and (stands_alone or name in below or not set(below) <= set(bundle.configs)):
            continue
        try:
            parser = bundle.parser(*below, name)
            parser.parse()
        except _UNREADABLE as error:
            problems.append(error)
        else:
            parsed.append((parser, _unresolved(parser)))
    if not parsed:
        raise problems[0]
    return min(parsed, key=lambda one: len(one[1]))


def _unresolved(parser: ConfigParser) -> dict[str, list[str]]:
    """References to missing keys, with the keys that have these references."""
    missing: dict[str, list[str]] = {}
    items = parser.ref_resolver.items
    for key, item in items.items():
        config = item.get_config()
        if isinstance(config, str) and config.startswith(("$", "@")):
            for reference in ReferenceResolver.match_refs_pattern(config):
                if reference not in items:
                    missing.setdefault(reference, []).append(key)
    return missing


def _problem(component: ConfigComponent, bundle: Bundle) -> str:
    """What is wrong with a component's class and arguments; empty where nothing is."""
    config: dict[str, Any] = component.get_config()
    target = config["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@", "%")):
        return ""
    if not bundle.run and (bundle.root / target.split(".")[0]).exists():
        return ""  # the bundle's own code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = locate(component.resolve_module_name())
        except Exception as error:  # importing a module may raise anything
            return f"_target_ {target!r} cannot be imported: {error}. Install what it needs, or name another."
    if found is None:
        return f"_target_ {target!r} does not exist: correct the name, or install the package that has it."
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return ""
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return ""
    arguments = [key for key in config if not (key.startswith("_") and key.endswith("_"))]
    unknown = [key for key in arguments if key not in parameters]
    return f"{target} has no argument {', '.join(unknown)}; it has {', '.join(parameters)}." if unknown else ""


def _of_image(config: dict[str, Any]) -> list[dict[str, Any]]:
    transforms = (config.get("preprocessing") or {}).get("transforms") or []
    of_image = [t for t in transforms if str(t.get("_target_")).split(".")[-1] not in _LABELS_ONLY]
    return [{key: value for key, value in t.items() if key not in ("keys", "class_names")} for t in of_image]


@contextmanager
def _on_path(bundle: Bundle) -> Iterator[None]:
    """Put the bundle on the path, so that MONAI finds its own code (``scripts``)."""
    sys.path.insert(0, str(bundle.root))
    try:
        yield
    finally:
        sys.path.remove(str(bundle.root))
