"""A picture of a data set: the slice of each case that shows most of its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from skimage.measure import find_contours

from medsaga.data.folder_check import read_case
from medsaga.files import replacing

from .facts import known_label

__all__ = ["Panel", "draw_sheet", "panels_of"]

# distinguishable with the common colour deficiencies (Okabe and Ito's palette, the grey apart); then by style
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_STYLES = ("-", "--", ":")
_SIDE = 2.6  # inches of a panel's width
_TALLEST = 1.8  # ratio of a panel's height to its width; a taller panel is drawn narrower
_MOST_LEGEND = 24  # classes that are named


class Panel:
    """One slice of a case as it is drawn.

    Attributes:
        image: (H, W) grey or (H, W, 3) colour, in [0, 1].
        masks: (H, W) of bool by the class's place, 1 for the first; for separate objects, by numbers below 0.
        aspect: height of a pixel by its width.
        title: above it.
    """

    def __init__(self, image: np.ndarray, masks: dict[int, np.ndarray], aspect: float, title: str) -> None:
        self.image = image
        self.masks = masks
        self.aspect = aspect
        self.title = title


def panels_of(
    case: Mapping[str, Any],
    number: int,
    values: Sequence[int] | str,
    class_names: Sequence[str] | None,
    channel_names: Sequence[str],
    window: tuple[float, float] | None = None,
    plane: str | None = "auto",
) -> list[Panel]:
    """Read a case again for its slice with most foreground, turned as on a viewer's screen; one panel a channel.

    Args:
        case: that can be read.
        number: of the case, for the title: names may be those of patients.
        values: of the classes in the label, or ``"instances"``.
        class_names: as the reader takes them.
        channel_names: of the image.
        window: values drawn black and white; None takes percentiles of the image.
        plane: as of :class:`~medsaga.transforms.OrientSlicesd`.
    """
    _, data = read_case(case, class_names, len(channel_names), plane)
    if data is None:  # changed since all cases were looked at
        return []
    volume = data["image"].numpy()
    label = known_label(data["label"].numpy())[0] if "label" in data else None
    spacing = np.linalg.norm(np.asarray(data["image"].affine, dtype=np.float64)[:3, :2], axis=0)
    title = f"case {number + 1}"
    image = volume
    if volume.ndim == 4:
        shown = (label[0] != 0).sum(axis=(0, 1)) if label is not None else np.zeros(volume.shape[-1])
        index = int(shown.argmax()) if shown.any() else volume.shape[-1] // 2
        title += f", slice {index + 1} of {volume.shape[-1]}"
        image = volume[..., index]
        label = label[..., index] if label is not None else None
    masks = _masks(label, values)
    aspect = spacing[0] / spacing[1]
    if len(channel_names) == 1:
        grey = _scaled(image, volume, window)
        return [Panel(np.moveaxis(grey, 0, -1) if len(grey) == 3 else grey[0], masks, aspect, title)]
    return [
        Panel(_scaled(one, whole, window), masks, aspect, f"{title}: {_short(name)}")
        for one, whole, name in zip(image, volume, channel_names)
    ]


def _scaled(image: np.ndarray, volume: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Intensities of a slice in [0, 1], by a window or by percentiles of what is not masked in its volume."""
    if window is None:
        imaged = volume[volume != volume.flat[0]]
        window = np.percentile(imaged if imaged.size < 0.7 * volume.size else volume, (0.5, 99.5)).tolist()
    low, high = window
    return np.clip((image - low) / max(high - low, 1e-9), 0, 1)


def _masks(label: np.ndarray | None, values: Sequence[int] | str) -> dict[int, np.ndarray]:
    """Masks by the place of the class; masks of separate objects by negative numbers."""
    if label is None:
        return {}
    if values == "instances":
        masks = {-int(n): label[0] == n for n in np.unique(label[0]) if n != 0}
    else:
        # masks of one class may be 0 and 255
        masks = {n: label[0] == v if len(values) > 1 else label[0] != 0 for n, v in enumerate(values, 1)}
    return {n: mask for n, mask in masks.items() if mask.any()}


def draw_sheet(panels: Sequence[Panel], classes: Sequence[str], title: str, path: Path) -> None:
    """Draw cases side by side, with the outlines of their labels.

    Args:
        panels: of the cases.
        classes: names, background left out.
        title: of the sheet.
        path: PNG to write.
    """
    columns = min(len(panels), 4 if len(panels) <= 8 else 5)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    legend = [
        Line2D([], [], color=_colour(n), linestyle=_style(n), label=_short(name))
        for n, name in enumerate(classes[:_MOST_LEGEND], 1)
    ]
    across = max(1, min(len(legend), int(columns * _SIDE / 1.9)))
    lines = -(-len(legend) // across)
    figure = Figure(figsize=(max(4.0, columns * _SIDE), sum(heights) + 0.3 * len(rows) + 0.25 * lines + 0.6), dpi=110)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(grid[place // columns, place % columns])
        axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, aspect=panel.aspect, interpolation="nearest")
        for n, mask in panel.masks.items():
            for outline in find_contours(np.pad(mask, 1).astype(np.uint8), 0.5):
                axes.plot(outline[:, 1] - 1, outline[:, 0] - 1, color=_colour(n), linestyle=_style(n), linewidth=1.1)
        axes.set_xlim(-0.5, panel.image.shape[1] - 0.5)
        axes.set_ylim(panel.image.shape[0] - 0.5, -0.5)
        axes.set_title(panel.title if panel.masks else f"{panel.title}: no label", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    more = f" and {len(classes) - _MOST_LEGEND} more" if len(classes) > _MOST_LEGEND else ""
    figure.legend(
        handles=legend, loc="outside lower center", ncols=across, fontsize=8, title=more or None, title_fontsize=8
    )
    with replacing(path, "writing.png") as temporary:
        figure.savefig(temporary, format="png")


def _height(panel: Panel) -> float:
    """Height in inches of a panel at the common width."""
    return _SIDE * min(panel.image.shape[0] * panel.aspect / panel.image.shape[1], _TALLEST)


def _colour(place: int) -> tuple[float, float, float, float]:
    return to_rgba(_COLOURS[(max(place, 1) - 1) % len(_COLOURS)])


def _style(place: int) -> str:
    return _STYLES[(max(place, 1) - 1) // len(_COLOURS) % len(_STYLES)]


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
