"""Pictures of an evaluation: image, reference and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .metrics_table import case_name

__all__ = ["OverlayPictures", "draw_overlay"]

# distinguishable with the common colour deficiencies (Okabe and Ito's palette)
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def draw_overlay(
    image: np.ndarray, masks: dict[str, np.ndarray], class_names: Sequence[str], num_slices: int, path: Path
) -> None:
    """Draw slices of a case, a row each: the image alone, then with each of the masks over it.

    Args:
        image: (H, W) or (H, W, D) grey, or (H, W, 3).
        masks: title → class numbers (H, W) or (H, W, D).
        class_names: of all classes, background first.
        num_slices: at most so many slices, spread evenly over those where a mask has a class.
        path: PNG to write.
    """
    volume = next(iter(masks.values())).ndim == 3
    if volume:
        shown = np.flatnonzero(np.any([(m > 0).any(axis=(0, 1)) for m in masks.values()], axis=0))
        shown = shown if len(shown) else np.arange(image.shape[-1])
        count = min(num_slices, len(shown))
        shown = shown[(2 * np.arange(count) + 1) * len(shown) // (2 * count)]  # the middles of equal parts
        panels = [(f"slice {i}", image[..., i], {k: m[..., i] for k, m in masks.items()}) for i in shown]
    else:
        panels = [("", image, masks)]
    colours = ListedColormap([_COLOURS[i % len(_COLOURS)] for i in range(len(class_names) - 1)])
    rows, columns = len(panels), 1 + len(masks)
    aspect = panels[0][1].shape[0] / panels[0][1].shape[1]
    figure = Figure(figsize=(3 * columns, 3 * aspect * rows + 0.6), dpi=100, layout="constrained")
    for row, (name, slice_, slice_masks) in enumerate(panels):
        for column, (title, mask) in enumerate([("image", None), *slice_masks.items()]):
            axes = figure.add_subplot(rows, columns, row * columns + column + 1)
            axes.imshow(slice_, cmap="gray", vmin=0, vmax=1)
            if mask is not None:
                shown_mask = np.ma.masked_equal(mask, 0)
                axes.imshow(shown_mask, cmap=colours, vmin=0.5, vmax=len(class_names) - 0.5, alpha=0.5)
            axes.set_title(title if row == 0 else "", fontsize=10)
            axes.set_ylabel(name if column == 0 else "", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
    legend = [Patch(color=colours(i), label=name) for i, name in enumerate(class_names[1:])]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(4, len(legend)), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


class OverlayPictures:
    """Ignite handler of a MONAI evaluator: ``CASE.png`` for its first cases.

    Args:
        output_dir: folder of the pictures.
        class_names: of all classes, background first.
        num_slices: slices a picture.
        num_cases: draw no more cases than these.
    """

    def __init__(
        self, output_dir: str | Path, class_names: Sequence[str], num_slices: int = 6, num_cases: int = 5
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.num_slices = num_slices
        self.num_cases = num_cases

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: evaluator whose output has ``image`` (intensities in [0, 1]), ``label`` and ``pred``.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        if engine.state.iteration > self.num_cases:
            return
        for item in engine.state.output:
            image = np.asarray(item["image"].cpu())
            # RGB; of a volume, and of other numbers of channels, the first
            image = np.moveaxis(image, 0, -1) if image.shape[0] == image.ndim == 3 else image[0]
            masks = {"reference": np.asarray(item["label"].cpu())[0], "prediction": np.asarray(item["pred"].cpu())[0]}
            path = self.output_dir / f"{case_name(item['image'])}.png"
            draw_overlay(image, masks, self.class_names, self.num_slices, path)
