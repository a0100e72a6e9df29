"""An annotator who knows the truth and prompts: where he clicks, and the masks that he gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label

from medsaga.inferers import EmbeddingCache, PromptedSlices, SlicePrompt
from medsaga.inferers.click_boxes import box_around
from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square, undo_fit_square

from .annotator import dice

__all__ = ["Click", "NetworkAnswers", "Object", "ServedAnswers", "next_click", "prompted", "title"]

Click = tuple[int, int, int]  # row, column, 1 inside the object or 0 outside


def next_click(predicted: np.ndarray, truth: np.ndarray) -> Click | None:
    """Where an annotator who sees a mask clicks: in the largest wrong region, farthest from its border.

    Args:
        predicted: mask (H, W).
        truth: mask (H, W).

    Returns:
        the click, positive where the object was missed; None where nothing is wrong.

    Source:
        Segment Anything (arXiv 2304.02643), appendix D.1 (the first click).
    """
    best: tuple[int, np.ndarray] | None = None
    for wrong in (truth & ~predicted, predicted & ~truth):
        regions, count = label(wrong)
        if count:
            sizes = np.bincount(regions.ravel())[1:]
            if best is None or sizes.max() > best[0]:
                best = int(sizes.max()), regions == sizes.argmax() + 1
    if best is None:
        return None
    # the image's edge is a border too
    distance = distance_transform_edt(np.pad(best[1], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    return int(row), int(column), int(truth[row, column])


@dataclass
class Object:
    """One class on one slice, and what comes of it by prompt.

    Attributes:
        steps: Dice after each click of the sequence without a box.
        wrong: number of clicks on the wrong side of the mask, summed over the steps; each step counts all clicks so
            far.
    """

    case: str
    name: str  # of the class
    index: int  # of the slice
    pixels: np.ndarray  # (H, W) or (H, W, 3)
    truth: np.ndarray
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # first and last row and column: r0, c0, r1, c1
    clicks: list[Click] = field(default_factory=list)
    masks: dict[str, np.ndarray] = field(default_factory=dict)  # "automatic", "1 click", "box", "box, 1 click", ...
    steps: list[float] = field(default_factory=list)
    wrong: int = 0

    @property
    def dice(self) -> dict[str, float]:
        """Dice by prompt."""
        return {prompt: dice(mask, self.truth) for prompt, mask in self.masks.items()}


class Answers(Protocol):
    """The masks (H, W) of one class on one slice."""

    def mask(self, clicks: Sequence[Click] = (), box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The object under a prompt; without one what is found automatically."""


class NetworkAnswers:
    """The network's own: a slice embedded once, and the masks of one class under any prompts.

    Args:
        network: in ``eval()``.
        slices: the slice and those of its chunk, (n, C, H, W), n = 1 for a network that treats each for itself.
        place: which of them.
        number: the class; None for published weights, the first of whose masks is the object.
    """

    def __init__(self, network: SamSegmenter, slices: torch.Tensor, place: int, number: int | None) -> None:
        self.network, self.number = network, number
        self.shape = tuple(slices.shape[-2:])
        self.device = network.pixel_mean.device
        images = fit_square(slices.float(), network.image_size).to(self.device)
        self.embedding = network.encode(images)[place : place + 1]
        self.scale = network.image_size / max(self.shape)

    def mask(self, clicks: Sequence[Click] = (), box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The mask of the object, (H, W)."""
        points = corners = None
        if clicks:
            # pixel centres are whole numbers, in the slice and in the network's input
            xy = [[(column + 0.5) * self.scale - 0.5, (row + 0.5) * self.scale - 0.5] for row, column, _ in clicks]
            labels = [[float(inside) for _, _, inside in clicks]]
            points = (torch.tensor([xy], device=self.device), torch.tensor(labels, device=self.device))
        if box is not None:
            r0, c0, r1, c1 = box
            edges = torch.tensor([[c0, r0, c1 + 1, r1 + 1]], dtype=torch.float32, device=self.device)
            corners = edges * self.scale - 0.5
        logits = self.network.decode(self.embedding, points, corners)
        logits = undo_fit_square(logits, self.network.image_size, self.shape)[0].cpu()
        return (logits[0] > 0 if self.number is None else logits.argmax(dim=0) == self.number).numpy()


class ServedAnswers:
    """What the app answers, see :class:`~medsaga.inferers.PromptedSlices`.

    Args:
        slices: the case, whose classes may lie on the same slices: each is encoded once.
        index: of the slice.
        number: the class; None for published weights.
    """

    def __init__(self, slices: PromptedSlices, index: int, number: int | None) -> None:
        self.slices, self.index, self.number = slices, index, number

    def mask(self, clicks: Sequence[Click] = (), box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The mask of the object, (H, W)."""
        if not clicks and box is None:
            pixels = self.slices.pixels(self.index)[None]
            return NetworkAnswers(self.slices.network, pixels, 0, self.number).mask()
        sides = [tuple((float(r), float(c)) for r, c, inside in clicks if inside == side) for side in (1, 0)]
        corners = None if box is None else tuple(float(v) for v in box)
        masks = self.slices.segment({self.index: SlicePrompt(*sides, corners)}, self.number)
        return masks[..., self.index].bool().numpy()


@torch.no_grad()
def prompted(
    network: SamSegmenter,
    case: dict[str, torch.Tensor],
    name: str,
    class_names: Sequence[str],
    at: Sequence[int],
    depth: int,
    head: str,
    served: bool = True,
    slices: int = 1,
    pixels: int = 1,
    boxed_at: Sequence[int] = (0, 1, 2),
    automatic: bool = True,
) -> list[Object]:
    """Prompt each class of a case on the slice where it is largest, and on others.

    Args:
        network: in ``eval()``.
        case: preprocessed ``image`` (C, H, W) or (C, H, W, D) and ``label``.
        name: of the case.
        class_names: background first.
        at: after how many clicks the mask is kept.
        depth: number of neighbouring slices that the network takes at a time.
        head: what its masks are; published weights know no classes and do nothing without a prompt.
        served: measure what the app answers, else the network's own masks.
        slices: 1, or 3: also those a quarter of the class's slices from either end.
        pixels: fewest of a class on a slice; those with fewer are left out.
        boxed_at: as ``at``, of the clicks that follow a box; 0 is the box alone.
        automatic: also keep what a network that knows the classes finds without a prompt.

    Returns:
        the classes that the case shows.
    """
    image, numbers = (torch.as_tensor(np.asarray(case[key])) for key in ("image", "label"))
    if image.ndim == 3:
        image, numbers = image[..., None], numbers[..., None]
    whole = PromptedSlices(image.float(), network, EmbeddingCache(), "case", head)
    image, numbers = image.permute(3, 0, 1, 2), numbers[0].permute(2, 0, 1)
    found = []
    for number in range(1, len(class_names)):
        areas = (numbers == number).sum(dim=(1, 2))
        extent = areas.nonzero().flatten().tolist()
        if not extent:
            continue
        quarters = [extent[len(extent) // 4], extent[3 * len(extent) // 4]]
        for index in dict.fromkeys([int(areas.argmax()), *quarters][:slices]):
            wanted = number if head == "classes" else None
            if served:
                answers: Answers = ServedAnswers(whole, index, wanted)
            else:
                start = index - index % depth
                answers = NetworkAnswers(network, image[start : start + depth], index - start, wanted)
            truth = (numbers[index] == number).numpy()
            if truth.sum() < pixels:
                continue
            shown = image[index].permute(1, 2, 0).numpy()
            shown = shown if shown.shape[-1] == 3 else shown[..., 0]
            thing = Object(name, class_names[number], index, shown, truth)
            if automatic and head == "classes":
                thing.masks["automatic"] = answers.mask()
            found.append(_prompted(answers, truth, at, boxed_at, thing))
    return found


def _prompted(answers: Answers, truth: np.ndarray, at: Sequence[int], boxed_at: Sequence[int], found: Object) -> Object:
    mask = np.zeros_like(truth)
    for count in range(1, max(at) + 1):
        click = next_click(mask, truth)
        if click is not None:
            found.clicks.append(click)
            mask = answers.mask(found.clicks)
        found.steps.append(dice(mask, truth))
        found.wrong += sum(mask[row, column] != inside for row, column, inside in found.clicks)
        if count in at:
            found.masks[title(count)] = mask
    found.box = box_around(truth)
    clicks: list[Click] = []
    for count in range(max(boxed_at) + 1):
        click = next_click(mask, truth) if count else None
        if click is not None:
            clicks.append(click)
        if count == 0 or click is not None:
            mask = answers.mask(clicks, found.box)
        if count in boxed_at:
            found.masks[f"box, {title(count)}" if count else "box"] = mask
    return found


def title(count: int) -> str:
    """A column of the table."""
    return f"{count} click{'s' if count > 1 else ''}"
