"""A bundle's files, written from its ``dataset.json`` and the template that all bundles share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .dataset import complete, read_dataset
from .root import find_base
from .wording import FILTERS, derived
from .written import WrittenFiles

__all__ = ["add_commands", "as_json", "bundle_files", "write_bundle"]

_WIDTH = 100  # columns that a list of JSON on one line may take
_RECORD = ".written.json"  # checksums of what was written, to tell what was edited since


def bundle_files(dataset: dict[str, Any], base: str | Path, texts: dict[str, str] | None = None) -> dict[str, str]:
    """Contents of the files of a bundle.

    Files of the template that end in ``.jinja`` are filled in; the others are copied. The files in its folder ``parts``
    are included by the ``.jinja`` files. Fields and texts are inserted literally; none is evaluated.

    Args:
        dataset: fields of ``dataset.json`` that differ from the template's own.
        base: folder of the template, with the ``dataset.json`` of defaults.
        texts: sections of the README that were written by hand, by name (``data``, ``performance``, ...).

    Returns:
        text by path in the bundle's folder.

    Raises:
        FileNotFoundError: no template in ``base``.
        ValueError: a field that is unknown, missing or wrong.
    """
    base = Path(base)
    values = complete(dataset, read_dataset(base))
    environment = Environment(
        loader=FileSystemLoader(base),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys stay in their order
    environment.filters |= FILTERS
    values |= derived(values)
    values["texts"] = {name: text.strip() for name, text in (texts or {}).items()}
    files = {}
    for path in sorted(p for p in base.rglob("*") if p.is_file()):
        name = path.relative_to(base).as_posix()
        if name == "dataset.json" or name.startswith("parts/") or path.name.startswith("."):
            continue
        if path.suffix != ".jinja":
            files[name] = path.read_text(encoding="utf-8")
            continue
        text = environment.get_template(name).render(values)
        name = name.removesuffix(".jinja")
        if name.endswith(".json"):
            content = json.loads(text)
            if content is None:  # a file that this data set does not need
                continue
            text = as_json(content) + "\n"
        files[name] = text
    return files


def write_bundle(folder: str | Path, base: str | Path, force: bool = False) -> list[Path]:
    """Write a bundle's files from its ``dataset.json`` and the texts in its ``docs/*.md``.

    Files with the right content already are not written, so a second run changes nothing. The checksums of written
    files are kept, so that a file that was edited later is recognised, even after the template has changed.

    Args:
        folder: of the bundle, whose name is the bundle's; holds ``dataset.json``.
        base: folder of the template.
        force: write over files that were edited.

    Returns:
        the files written.

    Raises:
        FileExistsError: files that were edited, each by its path; then none is written, because a bundle's files have
            to fit each other.
        FileNotFoundError: no ``dataset.json`` or no template.
        ValueError: as of :func:`bundle_files`, or a name that is not the folder's.
    """
    folder = Path(folder)
    dataset = read_dataset(folder)
    if dataset.get("name") != folder.resolve().name:
        raise ValueError(
            f"{folder / 'dataset.json'}: name is {dataset.get('name')!r}; it must be {folder.resolve().name!r}, the "
            "name of the folder, because configs find the bundle by this name."
        )
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "docs").glob("*.md")}
    texts.pop("README", None)
    files = bundle_files(dataset, base, texts)
    written = WrittenFiles(folder, _RECORD, files)
    if not force:
        written.refuse_edited(
            f"Make these changes in {folder / 'dataset.json'} or in the texts in {folder / 'docs'}, or overwrite the "
            "files with --force."
        )
    written.write()
    written.record()
    return [folder / name for name in written.changed]


def as_json(value: Any, indent: str = "") -> str:
    """JSON indented by four, in which a short list without lists or objects takes one line."""
    inner = indent + "    "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {as_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value:
        line = json.dumps(value)
        if len(line) <= _WIDTH and not any(isinstance(item, (dict, list)) for item in value):
            return line
        return "[\n" + ",\n".join(inner + as_json(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``write`` to the commands of ``python -m medsaga.bundle``."""
    parser = commands.add_parser("write", help="write bundles' files from their dataset.json and the template")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="name or folder of a bundle (default: all of bundles/)"
    )
    parser.add_argument("--force", action="store_true", help="also overwrite files that were edited by hand")
    parser.set_defaults(command=_write)


def _write(arguments: argparse.Namespace) -> None:
    base = find_base()
    names = arguments.names or sorted(p.parent.name for p in base.parent.glob("*/dataset.json") if p.parent != base)
    for name in names:
        folder = Path(name) if (Path(name) / "dataset.json").is_file() else base.parent / name
        written = write_bundle(folder, base, arguments.force)
        print(f"{folder}: " + (f"{len(written)} files written" if written else "nothing to change"))
