"""All inputs of known truth, and a page of what becomes of them.

``python -m tests.reading.table > docs/reading_inputs.md``
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .dicom_inputs import INPUTS as DICOM
from .volume_inputs import INPUTS as FILES
from .volume_inputs import PICTURE_INPUTS, PictureInput

__all__ = ["PICTURES", "VOLUMES"]

VOLUMES = [*(row for row in DICOM if row.pixels is None), *FILES]
PICTURES = [
    *(
        PictureInput(row.name, row.make, (23.5, 15.5), row.pixels, row.refused)
        for row in DICOM
        if row.pixels is not None
    ),
    *PICTURE_INPUTS,
]

_HEAD = """# Inputs of known truth, and what becomes of them

Made by `python -m tests.reading.table > docs/reading_inputs.md`; `tests/reading/test_inputs.py` tests each row.

Volumes hold a block of 0.64 ml, mostly centred at RAS (15.5, 22.5, 115) mm; a stand-in network marks what is bright
after the bundle's preprocessing. *Bundle* is `inference.json` of `hippocampus` (pictures: `chest_xray`), *app* its
automatic task, DICOM converted as from a DICOM store. A mask is given as its centre and millilitres (pictures: column,
row and pixels); everything else is the message of the refusal.
"""


def _text(outcome: object, folder: str) -> str:
    text = re.sub(r"^(\d+) of \1 cases failed, listed in \S+:\s*", "", str(outcome))
    text = re.sub(rf"{re.escape(folder)}/(input|work)(/|: )?", "", text)
    text = re.sub(r"1\.2\.826(\.\d+)+", "UID", text).replace("|", "/").replace("\n", " ")
    return text if len(text) < 330 else f"{text[:330]} ..."


def _lines(rows: Sequence, picture: bool) -> list[str]:
    from .segmented import by_app, by_bundle

    size = "pixels" if picture else "ml"
    lines = [f"| Input | Truth | Bundle, {size} | App |", "|---|---|---|---|"]
    for row in rows:
        outcomes = []
        for way in (by_bundle, by_app):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                (Path(folder) / "input").mkdir()
                path = row.make(Path(folder) / "input")
                outcomes.append(_text(way(path, Path(folder) / "work", picture), folder))
        amount = row.area if picture else row.ml
        truth = f"{', '.join(f'{c:g}' for c in row.centre)}: {amount:g}" if row.refused is None else "to be refused"
        bundle, app = outcomes
        lines.append(f"| {row.name} | {truth} | {bundle} | {'the same' if app == bundle else app} |")
        print(f"{row.name}: {bundle}", file=sys.stderr)
    return lines


def main() -> None:
    """Print the page."""
    logging.disable(logging.CRITICAL)
    print(_HEAD)
    for title, rows, picture in (("Volumes", VOLUMES, False), ("X-rays and pictures", PICTURES, True)):
        print(f"## {title}: {len(rows)} inputs\n", *_lines(rows, picture), "", sep="\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "monailabel_app"))
    main()
