"""``python -m medsaga.bundle``: write, check and export bundles for your own data."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings

from medsaga.bundle import template
from medsaga.export import command as export
from medsaga.failures import root_cause
from medsaga.planning import command as planning
from medsaga.verify import command as verify


def main(words: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: its words; those of this process where they are None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.bundle", description="Write, check and export bundles for your own data."
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in (planning, template, export, verify):
        room.add_commands(commands)
    arguments = parser.parse_args(words)
    try:
        arguments.command(arguments)
    except Exception as err:  # MONAI wraps an error in a config in several of its own exceptions
        if arguments.traceback:
            raise
        cause = root_cause(err)
        sys.exit(f"{type(cause).__name__}: {cause}")


if __name__ == "__main__":
    # notices about a file are in the report
    warnings.simplefilter("ignore")
    for library in ("medsaga", "monai"):
        logging.getLogger(library).setLevel(logging.ERROR)
    main()
