"""``python -m medsaga.bundle export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsaga.bundle.root import bundle_folder

from .zoo import FORMS, PLACEHOLDER, export_bundle

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``export`` to the commands of ``python -m medsaga.bundle``."""
    parser = commands.add_parser("export", help="write a trained bundle as a zip file for MONAI's model zoo")
    parser.add_argument("bundle", metavar="NAME", help="name or folder of the bundle")
    parser.add_argument("--output", required=True, type=Path, metavar="X.zip", help="file to write")
    parser.add_argument("--version", metavar="0.2.0", help="version of the exported bundle (default: unchanged)")
    parser.add_argument("--changes", metavar="TEXT", help="what is new in this version, for the changelog")
    parser.add_argument(
        "--url-prefix", metavar="URL", default=PLACEHOLDER, help="address under which files of more than 25 MB will lie"
    )
    parser.add_argument(
        "--forms", nargs="*", choices=FORMS, default=FORMS, help="forms to write beside the weights (default: both)"
    )
    parser.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    bundle = bundle_folder(arguments.bundle)
    notes = export_bundle(
        bundle, arguments.output, arguments.version, arguments.changes, arguments.url_prefix, arguments.forms
    )
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {bundle.resolve().name}, {size:.1f} MB, all checks passed.")
    for note in notes:
        print(note)
