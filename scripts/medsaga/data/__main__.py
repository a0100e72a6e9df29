"""``python -m medsaga.data``: ``check`` what is in a folder of images, ``fetch`` the data set of a bundle."""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from monai.bundle import ConfigParser

from medsaga.bundle.root import bundle_folder
from medsaga.failures import Failure, root_cause
from medsaga.files import replacing
from medsaga.text_table import text_table

from .fetch import run
from .folder_check import FoundFile, cases_in, check_case, describe_case
from .found_images import below, some, walk_images
from .over_cases import be_quiet, over_cases
from .slice_cache import prepare_cases

_MANY = 100  # number of cases above which it is worth starting processes
_HEADER = ("file", "kind", "size", "spacing (mm)", "plane", "remarks", "wrong")


def main(words: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: its words; those of this process where they are None.
    """
    arguments = _parse(words)
    arguments.command(arguments)


def _fetch(arguments: argparse.Namespace) -> None:
    try:
        bundle = bundle_folder(arguments.name, "dataset.json")
        run(bundle, arguments.accept_licence, input if sys.stdin.isatty() else None)
    except (OSError, RuntimeError, ValueError) as err:
        sys.exit(f"{type(err).__name__}: {err}")


def _check(arguments: argparse.Namespace) -> None:
    try:
        found = _with_bundle(arguments) if arguments.bundle else _without_bundle(arguments)
    except Exception as err:  # MONAI wraps an error in a config in several of its own exceptions
        cause = root_cause(err)
        sys.exit(f"{type(cause).__name__}: {cause}")
    root = Path(arguments.folder)
    rows = [row._replace(file=below(root, row.file)) for row in found]
    print(text_table(_HEADER, rows))
    if arguments.csv:
        with replacing(Path(arguments.csv)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([FoundFile._fields, *found])
    wrong = sum(bool(row.wrong) for row in found)
    print(f"\n{len(found)} images and labels, {f'{wrong} of which cannot' if wrong else 'all of which can'} be used.")
    sys.exit(1 if wrong else 0)


def _without_bundle(arguments: argparse.Namespace) -> list[FoundFile]:
    root = Path(arguments.folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder.")
    passed_over: list[Path] = []
    images = [str(path) for path in walk_images(root, set(), passed_over)]
    if not images:
        raise FileNotFoundError(f"{root}: there is no image in it or the folders in it.")
    layout, cases = cases_in(root, images, arguments.label)
    print(f"{root}: {layout.name if layout else 'no known layout, so the images are checked one by one'}.")
    for note in layout.notes if layout else ():
        print(note)
    if passed_over:
        names = some([str(path.relative_to(root)) for path in passed_over])
        print(f"{len(passed_over)} files are skipped, because their format cannot be read: {names}.")
    print()
    # the layout's own cases need not be sent to each process
    check = partial(check_case, layout=layout and replace(layout, cases=[]))
    checked = over_cases(check, cases, "Checking", None if len(cases) > _MANY else 0)
    found = ([FoundFile(rows.file, wrong=rows.cause)] if isinstance(rows, Failure) else rows for rows in checked)
    return [row for rows in found for row in rows]


def _with_bundle(arguments: argparse.Namespace) -> list[FoundFile]:
    bundle = bundle_folder(arguments.bundle, "configs/train.json")
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.json"))
    config.update({"bundle_root": str(bundle), "dataset_dir": arguments.folder})
    cases = config.get_parsed_content("datalist")
    print(f"{arguments.folder}: {len(cases)} cases of bundle {bundle.resolve().name}.\n")
    settings = [config.get_parsed_content(key) for key in ("preprocessing", "num_classes", "cache_dir", "num_workers")]
    _, failures = prepare_cases((), cases, *settings)
    rows = {path: row for case in cases for path, row in describe_case(case).items()}
    return list({**rows, **{f.file: rows[f.file]._replace(wrong=f.cause) for f in failures}}.values())


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.data", description="Check a folder of images, or fetch the data set of a bundle."
    )
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="read every image and label of a folder, as a training does")
    check.add_argument("folder", help="folder to search, with those in it: DICOM, NIfTI, NRRD, MetaImage, pictures")
    check.add_argument("--bundle", help="name or folder of a bundle: check its cases with its preprocessing")
    check.add_argument("--label", action="store_true", help="all files are labels: they hold class numbers")
    check.add_argument("--csv", help="CSV file to write the table to")
    check.set_defaults(command=_check)
    fetch = commands.add_parser("fetch", help="download a bundle's data set, or say where to get it")
    fetch.add_argument("name", help="name or folder of a bundle")
    fetch.add_argument(
        "--accept-licence",
        action="store_true",
        help="accept the data set's licence, which is shown, without a question",
    )
    fetch.set_defaults(command=_fetch)
    return parser.parse_args(words)


if __name__ == "__main__":
    be_quiet()
    main()
