"""``python -m medsaga.bundle verify``."""

from __future__ import annotations

import argparse
import sys

from medsaga.text_table import text_table

from .run import verify_bundle

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``verify`` to the commands of ``python -m medsaga.bundle``."""
    parser = commands.add_parser("verify", help="check any MONAI bundle, without a network connection")
    parser.add_argument("bundle", metavar="NAME|FOLDER|ZIP", help="name, folder or zip file of the bundle")
    parser.add_argument(
        "--published", action="store_true", help="check a folder, too, as a bundle to hand on to others"
    )
    parser.add_argument(
        "--no-run",
        action="store_true",
        help="evaluate and run nothing of the bundle: use it if you do not trust its author",
    )
    parser.set_defaults(command=_verify)


def _verify(arguments: argparse.Namespace) -> None:
    findings = verify_bundle(arguments.bundle, arguments.published, run=not arguments.no_run)
    rows = []
    for finding in findings:
        first, *more = finding.problems or ("",)
        rows += [(finding.check, finding.state, first), *(("", "", problem) for problem in more)]
    print(text_table(("Check", "Result", "What is wrong, or why it was skipped"), rows))
    failed = sum(finding.failed for finding in findings)
    print(f"\n{arguments.bundle}: " + (f"{failed} of {len(findings)} checks failed." if failed else "all is well."))
    if failed:
        sys.exit(1)
