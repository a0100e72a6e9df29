"""Whether a folder is one of the Medical Segmentation Decathlon, and what its index says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib

from medsaga.reading import name_without_suffix

from .decathlon import decathlon_datalist, read_index
from .ends import ends_of_files
from .layout import Layout, OtherLayoutError, channels_in, inside, layout_of
from .patients import patient_rule

__all__ = ["about_in", "classes_in", "find_decathlon", "said_test_images"]


def find_decathlon(folder: Path, labels: Path | None = None) -> Layout:
    """A folder with ``dataset.json`` that lists images and labels, also AMOS, whose validation cases have labels.

    Raises:
        OtherLayoutError: it has no such index.
        FileNotFoundError, ValueError: a file that the index names is missing, or the index cannot be read.
    """
    if labels is not None or not (folder / "dataset.json").is_file():
        raise OtherLayoutError("dataset.json")
    content = read_index(folder)
    lists = [name for name in ("training", "validation") if _is_list(content.get(name))]
    if "training" not in lists:
        raise OtherLayoutError("a list 'training' of images and labels in dataset.json")
    listed = [case for name in lists for case in content[name]]
    if not any(_exists(folder, case) for case in listed):
        raise OtherLayoutError("the images that dataset.json lists")
    arguments: dict[str, Any] = {} if lists == ["training"] else {"lists": lists}
    names = [name_without_suffix(str(image).replace("\\", "/")) for case in listed for image in _images(case)[:1]]
    rule = patient_rule(names)
    notes = []
    if rule is not None:
        arguments["patient"] = rule[0]
        notes.append(rule[1])
    name = "Medical Segmentation Decathlon (dataset.json)"
    said: dict[str, Any] = about_in(content)
    channels = channels_in(content.get("modality"))
    cases = decathlon_datalist(folder, **arguments)
    first = cases[0]["image"]
    count = len(first) if isinstance(first, list) else _channels_of(first)
    if len(channels) != count and (count > 1 or len(channels) > 1):
        if count > 1:
            notes.append(f"Images have {count} channels, which dataset.json does not name.")
        channels = tuple(f"channel {i + 1}" for i in range(count)) if count > 1 else ("image",)
    if missing := len(listed) - len(cases):
        notes.append(f"{missing} of {len(listed)} cases of dataset.json are not in the folder and are left out.")
    return layout_of(
        name,
        decathlon_datalist,
        folder,
        arguments,
        cases,
        classes=classes_in(content.get("labels"), notes),
        channel_names=channels,
        sequences=ends_of_files(cases) if isinstance(first, list) else None,
        test_images=said_test_images(folder, content),
        notes=tuple(notes),
        **said,
    )


def _is_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(case, dict) and {"image", "label"} <= set(case) for case in value)
    )


def _images(case: dict[str, Any]) -> list[Any]:
    return case["image"] if isinstance(case["image"], list) else [case["image"]]


def _exists(folder: Path, case: dict[str, Any]) -> bool:
    return inside(folder, case["label"]).exists() and all(inside(folder, image).exists() for image in _images(case))


def _channels_of(path: str) -> int:
    """Channels of a NIfTI file, by its header."""
    try:
        shape = nib.load(path).shape
    except Exception:  # what is wrong with it is said when it is read
        return 1
    return int(shape[3]) if len(shape) == 4 else 1


def about_in(content: dict[str, Any]) -> dict[str, Any]:
    """``about`` and ``modality`` of an index."""
    about = {
        key: str(content[key]) for key in ("name", "description", "reference") if isinstance(content.get(key), str)
    }
    licence = content.get("licence", content.get("license"))
    if isinstance(licence, str):
        about["licence"] = licence
    said = content.get("modality", content.get("channel_names"))
    names = list(said.values()) if isinstance(said, dict) else [said] if isinstance(said, str) else []
    modality = str(names[0]) if len(names) == 1 else ""
    return {"about": about, "modality": {"MRI": "MR"}.get(modality, modality)}


def classes_in(labels: Any, notes: list[str]) -> dict[str, int] | None:
    """Values by name of class, without background, of an index: ``{"1": "liver"}`` or ``{"liver": 1}``.

    Args:
        labels: what the index has.
        notes: gets what was made of regions, whose lists of values overlap.
    """
    if not isinstance(labels, dict):
        return None
    named: dict[int, str] = {}
    regions: dict[str, list[int]] = {}
    for key, value in labels.items():
        if isinstance(value, str) and str(key).strip().isdigit():
            named[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            if key == "ignore":
                notes.append(f"Voxels of value {value} ('ignore') are learnt as background, not left out of the loss.")
            else:
                named[value] = str(key)
        elif isinstance(value, list) and value and all(type(v) is int for v in value):
            regions[str(key)] = value
        else:
            return None
    parts = _parts_of(regions)
    if any(len(values) > 1 for values in regions.values()):
        said = ", ".join(f"{name} ({value})" for value, name in sorted(parts.items()))
        notes.append(f"Labels are regions that lie inside one another; their parts are the classes: {said}.")
    named = {**parts, **named}
    named.pop(0, None)
    if len(set(named.values())) < len(named):
        return {
            f"{name} {value}" if list(named.values()).count(name) > 1 else name: value for value, name in named.items()
        }
    return {name: value for value, name in sorted(named.items())}


def _parts_of(regions: dict[str, list[int]]) -> dict[int, str]:
    """The name of each value: that of the smallest region that has it."""
    smallest: dict[int, str] = {}
    for name, values in sorted(regions.items(), key=lambda pair: -len(pair[1])):
        smallest.update(dict.fromkeys(values, name))
    return smallest


def said_test_images(folder: Path, content: dict[str, Any]) -> str:
    """Folder of the images without labels, below the data folder; empty where there is none."""
    for key in ("test", "testing"):
        for case in content.get(key) or []:
            path = case.get("image") if isinstance(case, dict) else case
            if isinstance(path, str) and ".." not in path:
                parts = Path(path.replace("\\", "/")).parts[:-1]
                if parts and (folder / Path(*parts)).is_dir():
                    return "/".join(parts)
            break
    return "imagesTs" if (folder / "imagesTs").is_dir() and any((folder / "imagesTs").iterdir()) else ""
