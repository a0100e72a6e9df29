"""``python -m medsaga.bundle create`` and ``check``: from a folder of images and labels to a bundle."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

from medsaga.bundle.dataset import check_name
from medsaga.bundle.root import find_base
from medsaga.text_table import text_table

from .machine import this_machine
from .options import add_choices, asked, label_values
from .plan import Looked, Plan, look_at, plan_bundle
from .report import class_rows, found_lines, wrong_table
from .writing import draw, write_plan

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``create`` and ``check`` to the commands of ``python -m medsaga.bundle``."""
    create = commands.add_parser(
        "create",
        help="write a bundle for a folder of images and labels",
        description="Looks at all images and labels of a folder, chooses how to train on them, and writes a bundle.",
    )
    create.add_argument("name", metavar="NAME", help="name of the bundle: letters, digits and _")
    create.add_argument("--data", required=True, help="folder of the data, or a table (csv, tsv, json) of its cases")
    create.add_argument("--output", type=Path, help="folder of the bundle (default: bundles/NAME)")
    create.add_argument("--dry-run", action="store_true", help="print everything and write nothing")
    create.add_argument("--force", action="store_true", help="also overwrite files that were edited by hand")
    add_choices(create)
    create.set_defaults(command=_create)
    check = commands.add_parser("check", help="look at a folder of images and labels, and draw it")
    check.add_argument("data", metavar="FOLDER", help="folder of the data, or a table (csv, tsv, json) of its cases")
    check.add_argument(
        "--output", type=Path, default=Path("output/check"), help="folder of the picture (default: %(default)s)"
    )
    check.set_defaults(command=_check)
    for command in (create, check):
        command.add_argument("--labels", help="folder of the labels, if it is not inside that of the images")
        command.add_argument(
            "--class-names",
            nargs="+",
            metavar="NAME",
            help="names of the classes in the order of values, without background",
        )
        command.add_argument(
            "--label-values", metavar="VALUES", help="values of the classes in the labels, as 150,200,250; or instances"
        )
        command.add_argument("--modality", help="modality of the images: CT, MR, US, XR, ...")
        command.add_argument("--workers", type=int, help="number of processes that read (default: one for each core)")


def _look(arguments: argparse.Namespace, plane: str = "auto") -> Looked:
    values = label_values(arguments.label_values)
    return look_at(
        arguments.data,
        arguments.labels,
        arguments.class_names,
        arguments.modality,
        values,
        plane,
        arguments.workers,
    )


def _check(arguments: argparse.Namespace) -> None:
    looked = _look(arguments)
    _print_found(looked)
    print(f"\nPicture: {draw(looked, arguments.output)}")
    if looked.findings.wrong:
        raise SystemExit(1)


def _create(arguments: argparse.Namespace) -> None:
    check_name(arguments.name)
    wanted = asked(arguments)
    machine = this_machine(arguments.memory)
    base = find_base()
    folder = (arguments.output or base.parent / arguments.name).absolute()
    if folder.is_relative_to(Path.cwd()):  # shorter to read and to type
        folder = folder.relative_to(Path.cwd())
    if folder.name != arguments.name:
        raise ValueError(f"--output is {arguments.output}; its last part must be the bundle's name, {arguments.name}.")
    looked = _look(arguments, wanted.get("plane", "auto"))
    _print_found(looked)
    texts = {key: getattr(arguments, key) for key in ("title", "description", "source")}
    plan = plan_bundle(looked, arguments.name, wanted, machine, base, texts)
    print("\nChoices:\n")
    for one in plan.choices.made:
        print(f"{one.field:22}{json.dumps(one.value)}")
        print(textwrap.fill(one.reason, 110, initial_indent=" " * 22, subsequent_indent=" " * 22))
    written = write_plan(plan, folder, base, arguments.force, arguments.dry_run)
    if arguments.dry_run:
        print(f"\nNothing was written (--dry-run). {folder} would get {len(written)} files.")
        return
    if written:
        print(f"\n{folder}: {len(written)} files written.")
    else:
        print(f"\n{folder} has the right content already: nothing was changed.")
    print(f"Picture: {draw(looked, folder / 'output')}")
    _print_next(plan, folder)


def _print_found(looked: Looked) -> None:
    found, root = looked.findings, looked.source.folder
    print(f"\n{root}: {looked.source.layout.name}.\n")
    print(text_table(("found", ""), found_lines(found, looked.source.channel_names)))
    print(f"\n{text_table(*class_rows(found))}")
    for note in looked.notes:
        print(f"\nNote: {note}")
    if found.wrong:
        print(f"\n{len(found.wrong)} files cannot be used:\n\n{wrong_table(found, root)}")
        print("\nMend them, or take them out of the data: with them, a training stops before its first step.")


def _print_next(plan: Plan, folder: Path) -> None:
    configs = folder / "configs"
    unlabelled = plan.dataset["test_images"]
    images = plan.looked.source.folder / unlabelled if unlabelled else "IMAGE_OR_FOLDER"
    both = f"['{configs / 'train.json'}','{configs / 'evaluate.json'}']"
    score = f'python -m monai.bundle run evaluating --config_file "{both}"'
    if not plan.dataset["test_patients"]:
        score = "(No patient is kept for the test, so there is no score: it takes two and test_patients above 0.)"
    print(
        f"""
Look at the picture and the choices; to change one, edit {folder / "dataset.json"} and run
python -m medsaga.bundle write {folder}

Train, evaluate, segment:

python -m monai.bundle run training --config_file {configs / "train.json"}
{score}
python -m monai.bundle run evaluating --config_file {configs / "inference.json"} --dataset_dir {images}

With few labelled slices and many scans, a second training gives more: docs/self_training.md

Serve it to 3D Slicer and OHIF:

monailabel start_server --app monailabel_app --studies FOLDER --conf models {folder} --host 127.0.0.1"""
    )
