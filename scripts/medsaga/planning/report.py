"""What was found and chosen, in words and tables, for a terminal and for the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medsaga.data.found_images import below
from medsaga.text_table import text_table

from .choice import Choice
from .facts import PERCENTILES
from .findings import Findings

__all__ = ["choices_card", "class_rows", "data_card", "found_lines", "markdown", "wrong_table"]

_CLASS_HEADER = ("class", "value", "in cases", "in slices", "of voxels", "size (pixels)")
_SHOWN_PERCENTILES = (0.5, 1, 50, 99, 99.5, 99.9)
_SHOWN = 30  # files on the screen


def found_lines(found: Findings, channel_names: Sequence[str]) -> list[tuple[str, str]]:
    """What was found besides the classes, as pairs of a heading and a text."""
    unit = " mm" if found.unit == "mm" else " pixels"
    lines = [
        ("cases", _cases(found)),
        ("formats", ", ".join(f"{kind} {number}" for kind, number in sorted(found.kinds.items()))),
        ("modality", found.modality or "not known (give it with --modality)"),
        ("slices", f"{found.columns} × {found.rows} pixels" + _slices(found)),
    ]
    if found.unit == "mm":
        between = f", {found.spacing[1]}{unit} from slice to slice" if found.volumes else ""
        lines.append(("spacing", f"{found.spacing[0]}{unit} in a slice{between}"))
    if found.volumes:
        planes = ", ".join(f"{plane} {number}" for plane, number in sorted(found.planes.items()))
        thick = f"thick slices in {found.thick:.0%} of the volumes" if found.thick else "no thick slices"
        lines.append(("plane", f"{planes}; {thick}"))
    lines.append(("values", _values(found)))
    header = ", ".join(f"{which:g}" for which in _SHOWN_PERCENTILES)
    grey = not found.volumes and not found.colour and len(channel_names) == 1
    for place in range(1 if grey else found.channels):
        name = "RGB"[place] if found.colour and found.channels == 3 else _channel(channel_names, place)
        lines.append(
            (f"percentiles of {name}", f"{_numbers(found.intensities[place])} ({header}; median of the cases)")
        )
        if found.inside:
            lines.append(("  within labels", _numbers(found.inside[place])))
    if found.background >= 0.3:
        lines.append(("background", f"{found.background:.0%} of an image has one value"))
    if found.objects:
        lines.append(("objects", f"told apart, {found.objects} a case"))
    if found.label_values is not None:
        lines.append(("label values", str(found.label_values)))
    if found.split:
        lines.append(("split", ", ".join(f"{part} {number}" for part, number in sorted(found.split.items()))))
    return lines


def _values(found: Findings) -> str:
    kind = "RGB" if found.colour else "grey as RGB" if found.channels == 3 and not found.volumes else "grey"
    return f"{kind}, Hounsfield units" if found.hu == 1 else kind


def _channel(names: Sequence[str], place: int) -> str:
    return names[place] if place < len(names) else f"channel {place + 1}"


def _cases(found: Findings) -> str:
    text = f"{found.cases} of {found.patients} patient{'s' * (found.patients != 1)}"
    for number, what in ((found.unlabelled, "without a label"), (found.empty, "with an empty label")):
        text += f", {number} {what}" if number else ""
    unusable = found.listed - found.cases
    return text + (f"; {unusable} more cannot be used" if unusable > 0 else "")


def _slices(found: Findings) -> str:
    if not found.volumes:
        return ""
    return f", {found.slices} a volume, {found.foreground_slices} of {found.slices_total} show a class"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{values[PERCENTILES.index(which)]:.4g}" for which in _SHOWN_PERCENTILES)


def class_rows(found: Findings) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table of classes."""
    rows = [
        (
            one.name,
            "any" if found.label_values == "instances" else str(one.value),
            f"{one.cases:.0%}",
            f"{one.slices:.0%}",
            f"{one.voxels:.2%}",
            f"{one.diameter:.0f}",
        )
        for one in found.classes
    ]
    return _CLASS_HEADER, rows


def wrong_table(found: Findings, root: Path) -> str:
    """Files that cannot be used, each with its cause."""
    rows = [(below(root, row.file), row.wrong) for row in found.wrong]
    more = f"\n... and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return text_table(("file", "wrong"), rows[:_SHOWN]) + more


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; no text in a cell can end the table or begin a tag."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def data_card(found: Findings, channel_names: Sequence[str], source: str, layout: str) -> str:
    """The section "Data" of the model card. It names no file and no patient.

    Args:
        found: in the data.
        channel_names: of the image.
        source: of the data set, a sentence.
        layout: of its folder.
    """
    header, rows = class_rows(found)
    lines = [(heading, text) for heading, text in found_lines(found, channel_names)]
    return (
        f"{source} Its folder is laid out as {layout}. What `python -m medsaga.bundle create` found in it:\n\n"
        f"{markdown(('', ''), lines)}\n\n{markdown(header, rows)}\n\nData elsewhere: give `--dataset_dir FOLDER`.\n"
    )


def choices_card(choices: Sequence[Choice], notes: Sequence[str]) -> str:
    """The section "Choices" of the model card.

    Args:
        choices: with their reasons.
        notes: what was guessed about the data.
    """
    rows = [(f"`{one.field}`", f"`{json.dumps(one.value)}`", one.reason) for one in choices]
    guessed = (
        "\n\nWhat was guessed, and what to check:\n\n" + "\n".join(f"* {_cell(note)}" for note in notes)
        if notes
        else ""
    )
    return (
        "Made by `python -m medsaga.bundle create` from what it found. To change one, edit `dataset.json` and write "
        "the bundle again (`python -m medsaga.bundle write NAME`).\n\n"
        f"{markdown(('field', 'value', 'why'), rows)}{guessed}\n"
    )
