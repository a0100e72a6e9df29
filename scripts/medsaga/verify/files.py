"""Checks of files: what a bundle must have, licences, large files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from monai.bundle import ConfigParser

from medsaga.download import checksum_of

from .bundle import Bundle
from .findings import skip_without

__all__ = ["large_files", "licences", "required_files"]

_NEEDED = {
    "configs/metadata.json": "it says what the network takes and gives",
    "LICENSE": "the text of the licence of configs and weights",
    "docs/README.md": "the model card",
}
_SHORTEST_LICENCE = 200  # letters; the MIT licence has 1,000
_STUB = re.compile(r"\b(TODO|TBD|FIXME|FILL[ -]IN)\b|<[^<>@/]*licen[cs]e[^<>]*>", re.IGNORECASE)
_KEYS = ("path", "url", "hash_val", "hash_type")
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


def required_files(bundle: Bundle) -> Iterator[str]:
    """The files that MONAI's specification and the model zoo want."""
    for name, why in _NEEDED.items():
        path = bundle.root / name
        if not path.is_file() or not path.stat().st_size:
            yield f"{name} is {'empty' if path.is_file() else 'missing'}: {why}."
    if not {"inference", "train"} & set(bundle.configs):
        yield "configs/ has neither inference.json nor train.json (or .yaml): nothing can be run."
    listed = {entry.get("path") for entry in _listed(bundle)}
    model = bundle.root / "models" / "model.pt"
    if bundle.published and not model.is_file() and "models/model.pt" not in listed:
        yield "models/model.pt is missing, and no large_files.yml says where it is: train the bundle, and export it."


def licences(bundle: Bundle) -> Iterator[str]:
    """Licence files must hold texts of licences."""
    licence = bundle.root / "LICENSE"
    if licence.is_file():
        text = licence.read_text(encoding="utf-8", errors="replace")
        if len(text) < _SHORTEST_LICENCE or "licen" not in text.lower():
            yield f"LICENSE does not hold a licence ({len(text)} letters): put the whole text there."
    data = bundle.root / "docs" / "data_license.txt"
    if not data.is_file():
        if bundle.published or bundle.own:
            yield "docs/data_license.txt is missing: say there what the data are, where they are from, and their terms."
        return
    text = data.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        yield "docs/data_license.txt is empty: say there what the data are, where they are from, and their terms."
    elif found := _STUB.search(text):
        yield f"docs/data_license.txt still says {found[0]!r}: write the terms of the data there."


def large_files(bundle: Bundle) -> Iterator[str]:
    """Entries of ``large_files.yml`` are complete, lie inside the bundle and agree with the files that are there."""
    entries = _listed(bundle)
    skip_without(entries, "there is no large_files.yml")
    for number, entry in enumerate(entries):
        where = f"large_files.yml, {entry.get('path') or f'entry {number}'}:"
        if missing := [key for key in _KEYS if not entry.get(key)]:
            yield f"{where} {', '.join(missing)} is missing; without it the file cannot be downloaded and checked."
            continue
        path = PurePosixPath(str(entry["path"]))
        if path.is_absolute() or ".." in path.parts:
            yield f"{where} the path leads out of the bundle; give a path in it."
            continue
        kind, value = str(entry["hash_type"]), str(entry["hash_val"]).lower()
        if len(value) != _DIGITS.get(kind) or not re.fullmatch("[0-9a-f]+", value):
            yield f"{where} hash_val is not a {kind} (known are {', '.join(_DIGITS)}): write what sha256sum prints."
            continue
        file = bundle.root / path
        if not file.is_file():
            if not re.match("https?://", str(entry["url"])):
                yield f"{where} the file is not there, and url is {entry['url']!r}: give the address of a download."
            continue
        actual = checksum_of(file, kind).removeprefix(f"{kind}:")
        if actual != value:
            yield f"{where} the file has {kind} {actual}: it is damaged, or the entry is of another file."


def _listed(bundle: Bundle) -> list[dict]:
    for path in sorted(bundle.root.glob("large_files.*")):
        if path.suffix in (".yml", ".yaml", ".json"):
            content = ConfigParser.load_config_file(str(path)) or {}
            entries = content.get("large_files")
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ValueError(f"{path.name} must have the list large_files, whose entries have {', '.join(_KEYS)}.")
            return entries
    return []
