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
        num_slices: largest number of slices, spread evenly over those where a mask has a class.
        path: PNG to write.
    """
    volume = next(iter(masks.values())).ndim == 3
    if volume:
        shown = np.flatnonzero(np.any([(m > 0).any(axis=(0, 1)) for m in masks.values()], axis=0))
        shown = shown if len(shown) else np.arange(image.shape[-1])
        count = min(num_slices, len(shown))
        shown = shown[(2 * np.arange(count) + 1) * len(shown) // (2 * count)]  # the middles of equal parts
        names, slices_of = [f"slice {i}" for i in shown], lambda array: [array[..., i] for i in shown]
    else:
        names, slices_of = [""], lambda array: [array]
    colours = ListedColormap([_COLOURS[i % len(_COLOURS)] for i in range(len(class_names) - 1)])
    # draw a column as one picture, which is much faster than a panel for each slice
    gap = max(1, image.shape[0] // 32)  # pixels between slices
    column = _below_each_other(slices_of(image), gap, np.nan)
    size = (3 * (1 + len(masks)), 3 * column.shape[0] / column.shape[1] + 0.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    first, *others = figure.subplots(1, 1 + len(masks))
    for axes, title in zip([first, *others], ["image", *masks]):
        axes.imshow(column, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, mask in zip(others, masks.values()):
        shown_mask = np.ma.masked_equal(_below_each_other(slices_of(mask), gap, 0), 0)
        axes.imshow(shown_mask, cmap=colours, vmin=0.5, vmax=len(class_names) - 0.5, alpha=0.5)
    middles = [i * (image.shape[0] + gap) + image.shape[0] / 2 for i in range(len(names))]
    first.set_yticks(middles, names, rotation=90, va="center", fontsize=8)
    first.tick_params(length=0)
    legend = [Patch(color=colours(i), label=name) for i, name in enumerate(class_names[1:])]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(4, len(legend)), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _below_each_other(slices: Sequence[np.ndarray], gap: int, value: float) -> np.ndarray:
    """Slices (H, W) or (H, W, 3) as one picture, with ``gap`` rows of this value between them."""
    rest = [(0, 0)] * (slices[0].ndim - 1)
    padded = [np.pad(slice_, [(0, gap), *rest], constant_values=value) for slice_ in slices]
    return np.concatenate(padded)[:-gap]


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
