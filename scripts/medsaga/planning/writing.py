"""Write a planned bundle, and draw pictures of its data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsaga.bundle.template import as_json, bundle_files, write_bundle
from medsaga.bundle.written import WrittenFiles

from .plan import Looked, Plan
from .report import choices_card, data_card
from .sheet import draw_sheet, panels_of

__all__ = ["created_files", "draw", "write_plan"]

_RECORD = ".created.json"  # checksums of what was written, to tell what was edited since
_PANELS = 15


def created_files(plan: Plan) -> dict[str, str]:
    """Texts of the files from which the bundle is written, by path in its folder."""
    looked = plan.looked
    files = {
        "dataset.json": as_json(plan.dataset) + "\n",
        "docs/choices.md": choices_card(plan.choices.made, looked.notes),
        "docs/data.md": data_card(looked.findings, looked.source.channel_names, plan.source, looked.source.layout.name),
    }
    if plan.licence:
        files["docs/licence.md"] = (
            f"Data set: {plan.dataset['title']}\nSource:   {plan.source}\nLicence, as its index says: {plan.licence}\n"
        )
    return files


def write_plan(plan: Plan, folder: Path, base: Path, force: bool = False, dry: bool = False) -> list[Path]:
    """Write a bundle, all of it or nothing.

    Files that have the right content already are not written.

    Args:
        plan: of the bundle.
        folder: of the bundle.
        base: folder of the template of bundles.
        force: write over files that were edited since they were written.
        dry: write nothing.

    Returns:
        files that were written; with ``dry``, those that would be written, some of which may have the right content
        already.

    Raises:
        FileExistsError: files that were edited, by path.
        ValueError: a field that the template does not take.
    """
    files = created_files(plan)
    texts = {Path(name).stem: text for name, text in files.items() if name.startswith("docs/")}
    generated = bundle_files(plan.dataset, base, texts)
    if dry:
        return [folder / name for name in (*files, *generated)]
    written = WrittenFiles(folder, _RECORD, files)
    if not force:
        written.refuse_edited(
            f"`python -m medsaga.bundle write {folder}` writes the bundle from them as they are; --force writes over "
            "them."
        )
    try:
        written.write()
        others = write_bundle(folder, base, force)
    except BaseException:
        written.write_back()
        raise
    written.record()
    return [*(folder / name for name in written.changed), *others]


def draw(looked: Looked, folder: Path) -> Path:
    """Draw cases spread over the data set, with their labels.

    Args:
        looked: the data set.
        folder: for the picture. The picture shows patients, so the folder must not be kept in git or shared with the
            bundle.

    Returns:
        path of the PNG.
    """
    found = looked.findings
    channels = looked.source.channel_names
    number = min(max(1, _PANELS // len(channels)), len(looked.usable))
    chosen = [looked.usable[i] for i in np.linspace(0, len(looked.usable) - 1, number).round().astype(int)]
    values = "instances" if found.label_values == "instances" else [one.value for one in found.classes]
    window = (found.within(5) - 150, found.within(95) + 150) if found.hu == 1 and found.inside else None
    panels = [
        panel
        for n, case in chosen
        for panel in panels_of(case, n, values, looked.source.class_names, channels, window, looked.plane)
    ]
    path = folder / "sheet.png"
    title = f"{number} of {found.cases} case{'s' * (found.cases != 1)}"
    draw_sheet(panels, [one.name for one in found.classes], title, path)
    return path
