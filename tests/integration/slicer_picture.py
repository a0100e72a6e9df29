"""``python -m tests.integration.slicer_picture``: what 3D Slicer shows after each of a few prompts, on a phantom.

A real server with LiteMedSAM's published weights answers the requests of Slicer's plugin; the picture is
``docs/figures/slicer_prompts.png``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .bundles import ROOT
from .server import serve
from .slicer import SlicerPanel

HEIGHT = 12
COLOURS = {"anterior": "tab:orange", "posterior": "tab:cyan"}


def two_organs() -> nib.Nifti1Image:
    """A body with two organs that touch, and a vessel in one of them."""
    i, j, k = np.ogrid[:192, :160, :24]
    values = np.full((192, 160, 24), 20.0)
    values[((i - 96) / 84) ** 2 + ((j - 80) / 66) ** 2 + 0 * k < 1] = 300
    values[((i - 66) / 34) ** 2 + ((j - 78) / 38) ** 2 + ((k - 12) / 9) ** 2 < 1] = 620
    values[((i - 124) / 26) ** 2 + ((j - 84) / 30) ** 2 + ((k - 12) / 8) ** 2 < 1] = 500
    values[((i - 56) / 7) ** 2 + ((j - 92) / 9) ** 2 + ((k - 12) / 9) ** 2 < 1] = 860
    values += np.random.default_rng(0).normal(0, 28, values.shape)
    return nib.Nifti1Image(values.astype(np.int16), np.diag([-1.5, -1.5, 4, 1]))


def steps(panel: SlicerPanel, prompt: str, whole: str):
    """Title, prompts and segments, one after the other."""

    def shown(title, foreground=(), background=(), roi=()):
        return title, foreground, background, roi, {name: mask.copy() for name, mask in panel.segments.items()}

    box = [30, 102, 38, 118, HEIGHT, HEIGHT]
    panel.prompt(prompt, "anterior", roi=box)
    yield shown("a box", roi=box)
    outside = [[56, 92, HEIGHT]]
    panel.prompt(prompt, "anterior", [], outside, box)
    yield shown("the vessel taken away\nby a negative point", (), outside, box)
    panel.prompt(prompt, "anterior", roi=box)
    yield shown("the point deleted:\nthe mask before it", roi=box)
    inside = [[120, 84, HEIGHT]]
    panel.prompt(prompt, "posterior", inside)
    yield shown("a point for the neighbour:\nthe first is left as it is", inside)
    panel.prompt(whole, "posterior", inside)
    yield shown("the neighbour through the volume:\na slice above", inside)


def draw(image: nib.Nifti1Image, found: list, path: Path) -> None:
    """A panel for each step; the last on a slice 3 above."""
    figure = Figure(figsize=(3 * len(found), 3.1), dpi=100, layout="constrained")
    for number, (axes, (title, foreground, background, roi, segments)) in enumerate(
        zip(figure.subplots(1, len(found)), found)
    ):
        height = HEIGHT + 3 if number == len(found) - 1 else HEIGHT
        axes.imshow(np.asarray(image.dataobj)[..., height].T, cmap="gray", vmin=0, vmax=1000)
        for name, mask in segments.items():
            if mask[..., height].any():
                axes.contourf(mask[..., height].T, levels=[0.5, 1.5], colors=[COLOURS[name]], alpha=0.45)
                axes.contour(mask[..., height].T, levels=[0.5], colors=[COLOURS[name]], linewidths=1.5)
        if height == HEIGHT:
            for points, marker, colour in ((foreground, "+", "lime"), (background, "x", "red")):
                for i, j, _ in points:
                    axes.plot(i, j, marker, color=colour, markersize=11, markeredgewidth=2.5)
            if roi:
                i0, i1, j0, j1, *_ = roi
                axes.add_patch(Rectangle((i0, j0), i1 - i0, j1 - j0, fill=False, edgecolor="yellow", linewidth=1.5))
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def main(words: list[str] | None = None) -> None:
    """Start a server, ask it as Slicer does, draw."""
    parser = argparse.ArgumentParser(description="Draw what 3D Slicer shows after prompts.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures" / "slicer_prompts.png")
    output = parser.parse_args(words).output
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "hippocampus"
        left_out = shutil.ignore_patterns("cache", "output", "models", "*.pt")
        shutil.copytree(ROOT / "bundles" / "hippocampus", bundle, ignore=left_out)
        studies = Path(folder) / "studies"
        studies.mkdir()
        image = two_organs()
        nib.save(image, studies / "two_organs.nii.gz")
        with serve(Path(folder), bundle, cases=1, studies=studies) as server:
            panel = SlicerPanel(server.url, "two_organs", studies / "two_organs.nii.gz", Path(folder))
            found = list(steps(panel, "hippocampus_prompt", "hippocampus_propagate"))
    draw(image, found, output)
    print(output)


if __name__ == "__main__":
    main()
