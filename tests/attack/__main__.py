"""Attacks a server that it starts on loopback, and prints what went wrong: ``python -m tests.attack``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .run import Attack


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000, help="number of single requests (5000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    parser.add_argument("--short", action="store_true", help="no stop, no full disk, trainings are not waited for")
    parser.add_argument("--json", type=Path, help="file for all counts; standard output unless given")
    parser.add_argument("--keep", type=Path, help="folder to work in, with the server's log; a temporary one else")
    parser.add_argument(
        "--store", choices=["folder", "dicom"], default="folder", help="that holds the studies (folder)"
    )
    parser.add_argument("--logins", action="store_true", help="the server asks a realm for who may do what")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medsaga-attack-") as temporary:
        root = options.keep or Path(temporary)
        site = {"dicom": options.store == "dicom", "logins": options.logins}
        report = Attack(root, options.requests, options.seed, long=not options.short, verbose=True, **site).run()
    print(report.table())
    if options.json:
        options.json.write_text(report.json())
    else:
        print(report.json())
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
