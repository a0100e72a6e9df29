"""One object in an image or volume, from points and boxes on its slices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square, undo_fit_square

from .click_boxes import Box, box_around, mask_by_boxes
from .click_correction import Click, correct, without_islands, wrong_by
from .embedding_cache import EmbeddingCache
from .propagation import propagate as propagate_masks

__all__ = ["HEADS", "PromptedSlices", "SlicePrompt"]

HEADS = ("classes", "sam", "sam_boxes")
_OBJECT, _KEPT_OUT = np.uint8(1), np.uint8(2)


@dataclass(frozen=True)
class SlicePrompt:
    """What an annotator has marked on one slice, in voxels of the preprocessed slice.

    Args:
        inside: (row, column) of positive clicks.
        outside: (row, column) of negative clicks.
        box: first and last (row, column) within the object: (row0, column0, row1, column1).
    """

    inside: tuple[tuple[float, float], ...] = ()
    outside: tuple[tuple[float, float], ...] = ()
    box: Box | None = None


class PromptedSlices:
    """An image or volume whose slices are embedded once, and then segmented by any number of prompts.

    Args:
        image: preprocessed image (C, H, W) or volume (C, H, W, D), intensities in [0, 1], a plain tensor.
        network: in ``eval()``.
        cache: of embeddings; may be shared by many images.
        key: names image and weights in the cache.
        head: what the network's masks mean. ``classes``: the classes of a trained bundle. ``sam``: the guesses of
            published weights at one object, of which the first is for unambiguous prompts. ``sam_boxes``: the same, of
            weights trained on boxes only, see :func:`~medsaga.inferers.click_boxes.mask_by_boxes`.

    Raises:
        ValueError: ``head`` is none of these.

    Source:
        Segment Anything (arXiv 2304.02643), section 3 (prompts) and 5 (stability of a mask).
    """

    def __init__(
        self, image: torch.Tensor, network: SamSegmenter, cache: EmbeddingCache, key: Hashable, head: str = "classes"
    ) -> None:
        if head not in HEADS:
            raise ValueError(f"head={head!r} is unknown: choose one of {', '.join(HEADS)}")
        self.image = image
        self.network = network
        self.cache = cache
        self.key = key
        self.head = head
        self.shape = (int(image.shape[1]), int(image.shape[2]))
        self.depth = int(image.shape[3]) if image.ndim == 4 else 1

    def pixels(self, index: int) -> torch.Tensor:
        """One slice, (C, H, W)."""
        return self.image[..., index] if self.image.ndim == 4 else self.image

    def _grey(self, index: int) -> np.ndarray:
        return self.pixels(index).float().mean(dim=0).numpy()

    @torch.no_grad()
    def embed(self, index: int) -> torch.Tensor:
        """The embedding of one slice, (1, 256, g, g) on the network's device, from the cache where it is there."""
        device = self.network.pixel_mean.device

        def compute() -> torch.Tensor:
            pixels = self.pixels(index)[None].to(device).float()
            return self.network.encode(fit_square(pixels, self.network.image_size))

        return self.cache.get((self.key, index), compute)

    @torch.no_grad()
    def segment(
        self,
        prompts: Mapping[int, SlicePrompt],
        target: int | None = None,
        propagate: bool = False,
        protected: np.ndarray | None = None,
    ) -> torch.Tensor:
        """The mask of what the prompts point at.

        With ``propagate`` an object prompted on some slices is followed to the others, see :mod:`.propagation`. What
        was prompted stays as it is. The same box on consecutive slices is a box in three dimensions. Only three of its
        slices are prompted with it, because its rectangle is too large for most others, and the object stays inside the
        box.

        Args:
            prompts: by slice, 0 in a 2-D image.
            target: class that is meant; None takes the class that the network sees there. Without effect on SAM's head.
            propagate: go on to the slices without a prompt.
            protected: voxels that the object may not have, bool (H, W) or (H, W, D): a neighbour's, for instance.

        Returns:
            uint8, (H, W) or (H, W, D): 1 is the object, 2 the protected voxels that it would otherwise cover.

        Raises:
            ValueError: no prompt, only negative ones, one outside the image, a positive click in a protected voxel, or
                a target that is no class of the network.
        """
        self._check(prompts, target, protected)
        masks = torch.zeros((self.depth, *self.shape), dtype=torch.uint8)
        box, first, last = (0, 0, *self.shape), 0, self.depth - 1
        if propagate and (through := _box_through_slices(prompts)):
            prompts, box, first, last = through
        positive = {i: p for i, p in prompts.items() if p.inside or p.box is not None}
        if target is None and self.head == "classes":
            # one class for the whole object, decided by the first prompt, so that later corrections do not change it
            at = min(positive)
            corners, inside = positive[at].box, positive[at].inside
            target = self._seen_class(at, SlicePrompt(inside[:1] if corners is None else (), box=corners))
        for index, prompt in sorted(positive.items()):
            masks[index] = self._mask(index, prompt, target, self._free(index, protected))
        if propagate:
            known = {index: masks[index].numpy() == _OBJECT for index in positive}
            for index, mask in propagate_masks(known, self._grey, partial(self._around, target), first, last):
                mask = self._carved(index, mask & _inside_box(box, self.shape), prompts.get(index, SlicePrompt()))
                masks[index] = torch.from_numpy(np.where(self._free(index, protected), _OBJECT, _KEPT_OUT) * mask)
        return masks.permute(1, 2, 0) if self.image.ndim == 4 else masks[0]

    def _check(self, prompts: Mapping[int, SlicePrompt], target: int | None, protected: np.ndarray | None) -> None:
        classes = self.network.num_classes
        if target is not None and self.head == "classes" and not 0 < target < classes:
            raise ValueError(f"target {target} is not a class of this network: its classes are 1 to {classes - 1}.")
        if not any(p.inside or p.box is not None for p in prompts.values()):
            raise ValueError("no prompt: give at least one positive point, or a box.")
        (height, width), depth = self.shape, self.depth
        for index, prompt in prompts.items():
            both = {self._pixel(p) for p in prompt.inside} & {self._pixel(p) for p in prompt.outside}
            if both:
                raise ValueError(f"slice {index} has a positive and a negative point on one voxel: remove one of them.")
            corners = [prompt.box[:2], prompt.box[2:]] if prompt.box is not None else []
            for row, column in (*prompt.inside, *prompt.outside, *corners):
                if not (0 <= index < depth and -0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5):
                    raise ValueError(
                        f"a prompt at row {row:g}, column {column:g} of slice {index} is outside the image of "
                        f"{height} × {width} × {depth} voxels."
                    )
            free = self._free(index, protected)
            for point in prompt.inside:
                if not free[self._pixel(point)]:
                    raise ValueError(f"slice {index}: the positive point {self._pixel(point)} is on a protected voxel.")

    def _pixel(self, point: tuple[float, float]) -> tuple[int, int]:
        row, column = (min(max(round(v), 0), n - 1) for v, n in zip(point, self.shape))
        return row, column

    def _logits(
        self, index: int, clicks: Sequence[tuple[float, float, int]] = (), boxes: Sequence[Box] = ()
    ) -> torch.Tensor:
        """Logits (n, k, H, W) of a slice, on the CPU, for clicks (row, column, label) and n boxes; n = 1 without.

        Positions go to pixels x, y of the network's input, whose centres are whole numbers: SAM adds the half itself.
        """
        embedding = self.embed(index)
        scale, device = self.network.image_size / max(self.shape), embedding.device
        points = corners = None
        if clicks:
            xy = [[(column + 0.5) * scale - 0.5, (row + 0.5) * scale - 0.5] for row, column, _ in clicks]
            labels = [float(label) for _, _, label in clicks]
            points = (torch.tensor([xy], device=device), torch.tensor([labels], device=device))
        if boxes:
            edges = [(c0, r0, c1 + 1, r1 + 1) for r0, c0, r1, c1 in boxes]
            corners = torch.tensor(edges, dtype=torch.float32, device=device) * scale - 0.5
        logits = self.network.decode(embedding, points, corners)
        return undo_fit_square(logits, self.network.image_size, self.shape).cpu()

    def _free(self, index: int, protected: np.ndarray | None) -> np.ndarray:
        """The pixels of a slice that an object may have, bool (H, W)."""
        if protected is None:
            return np.ones(self.shape, dtype=bool)
        return ~(protected[..., index] if self.image.ndim == 4 else protected)

    def _mask(self, index: int, prompt: SlicePrompt, target: int | None, free: np.ndarray) -> torch.Tensor:
        """The object on a slice, (H, W): the network's answer to the first prompt, corrected by each other click.

        Clients send positive and negative clicks in separate lists, so their order has to be reconstructed. Of the
        first unused clicks of both lists, the one where the mask is most wrong comes next, because annotators click
        there. Results for the same earlier prompts are taken from the cache.
        """
        grey = self._grey(index)
        waiting = [[(*self._pixel(p), True) for p in prompt.inside], [(*self._pixel(p), False) for p in prompt.outside]]
        within = None if prompt.box is None else _inside_box(prompt.box, self.shape)
        digest = hashlib.sha256(np.packbits(free).tobytes()).digest()
        clicks: tuple[Click, ...] = (waiting[0].pop(0),) if prompt.box is None else ()

        def kept(compute: Callable[[], np.ndarray], before: np.ndarray | None = None) -> np.ndarray:
            key = (self.key, index, "mask", target, prompt.box, clicks, digest)
            return self.cache.get(key, lambda: torch.from_numpy(_cut(compute(), free, clicks, before))).numpy()

        found = kept(partial(self._first, index, prompt.box, clicks, target, grey))
        while any(waiting):
            mask = found == _OBJECT
            kind = max((w for w in waiting if w), key=partial(_next_wrong_by, mask))
            earlier, clicks = clicks, (*clicks, kind.pop(0))
            found = kept(partial(self._corrected, mask, grey, clicks[-1], earlier, within), found)
        return torch.from_numpy(found.copy())

    def _first(
        self, index: int, box: Box | None, clicks: tuple[Click, ...], target: int | None, grey: np.ndarray
    ) -> np.ndarray:
        """The mask of a box, or of one positive click."""
        if box is not None:
            return (self._margin(index, SlicePrompt(box=box), target) > 0).numpy() & _inside_box(box, self.shape)
        (click,) = clicks
        if self.head == "sam_boxes":
            mask = mask_by_boxes(lambda boxes: self._logits(index, boxes=boxes)[:, 0], grey, click)
        else:
            margin = self._margin(index, SlicePrompt(inside=(click[:2],)), target)
            mask = without_islands((margin > 0).numpy(), clicks)
        return correct(mask, grey, click)

    @staticmethod
    def _corrected(
        mask: np.ndarray, grey: np.ndarray, click: Click, earlier: tuple[Click, ...], within: np.ndarray | None
    ) -> np.ndarray:
        if within is None:
            return without_islands(correct(mask, grey, click, earlier), (*earlier, click))
        beyond = not within[click[:2]]  # a click outside of the box is intended
        return correct(mask, grey, click, earlier, None if beyond else within)

    def _around(self, target: int | None, index: int, mask: np.ndarray) -> np.ndarray:
        """The network's mask in the box around another one, bool (H, W)."""
        return (self._margin(index, SlicePrompt(box=box_around(mask)), target) > 0).numpy()

    def _carved(self, index: int, mask: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
        """A mask found without prompts, corrected by the negative clicks on its slice."""
        clicks = [(*self._pixel(point), False) for point in prompt.outside]
        for count, click in enumerate(clicks):
            mask = correct(mask, self._grey(index), click, clicks[:count])
        return mask

    def _prompted(self, index: int, prompt: SlicePrompt) -> torch.Tensor:
        """Logits (k, H, W) of a slice under its prompt."""
        clicks = [(*p, 1) for p in prompt.inside] + [(*p, 0) for p in prompt.outside]
        return self._logits(index, clicks, [prompt.box] if prompt.box is not None else [])[0]

    def _margin(self, index: int, prompt: SlicePrompt, target: int | None) -> torch.Tensor:
        """How much likelier the object is than all else, (H, W): above 0 it is the most likely."""
        if self.head != "classes":
            return self._prompted(index, prompt)[0]
        seen = self._prompted(index, prompt if prompt.box is not None else SlicePrompt()).softmax(dim=0)
        if prompt.box is None:
            # the answer without a prompt has the learnt shape, to which a point adds little
            row, column = self._pixel(prompt.inside[0])
            if int(seen[:, row, column].argmax()) != target:
                seen = seen + self._prompted(index, prompt).softmax(dim=0)
        return seen[target] - torch.cat([seen[:target], seen[target + 1 :]]).amax(dim=0)

    def _seen_class(self, index: int, prompt: SlicePrompt) -> int:
        classes = self._prompted(index, prompt).softmax(dim=0)[1:]
        if prompt.inside:
            rows, columns = torch.tensor(prompt.inside).round().long().T
            seen = classes[:, rows, columns].mean(dim=1)
        else:
            r0, c0, r1, c1 = (round(v) for v in prompt.box)
            seen = classes[:, r0 : r1 + 1, c0 : c1 + 1].mean(dim=(1, 2))
        return int(seen.argmax()) + 1


def _box_through_slices(
    prompts: Mapping[int, SlicePrompt],
) -> tuple[dict[int, SlicePrompt], Box, int, int] | None:
    """Prompts, rectangle, first and last slice of a box in three dimensions; None where there is none."""
    boxed = sorted(index for index, prompt in prompts.items() if prompt.box is not None)
    rectangles = {prompts[index].box for index in boxed}
    if len(rectangles) != 1 or len(boxed) < 2 or boxed[-1] - boxed[0] >= len(boxed):
        return None
    first, last = boxed[0], boxed[-1]
    kept = {round(first + share * (last - first)) for share in (0.25, 0.5, 0.75)}
    chosen = {i: p for i, p in prompts.items() if i in kept or p.inside or p.outside}
    return chosen, rectangles.pop(), first, last


def _cut(wanted: np.ndarray, free: np.ndarray, clicks: Sequence[Click], before: np.ndarray | None) -> np.ndarray:
    """What an object may have of what it wants, both bool (H, W): of the first answer the parts with a click, of a
    correction, the last click, what it adds without a gap to what was ``before``."""
    mask, kept_out = wanted & free, wanted & ~free
    if before is not None:
        had, kept_out = before == _OBJECT, kept_out | (before == _KEPT_OUT)
        mask = mask & had | without_islands(mask & ~had, clicks[-1:])
    elif clicks and kept_out.any():
        mask = without_islands(mask, clicks)
    return _OBJECT * mask + _KEPT_OUT * kept_out


def _next_wrong_by(mask: np.ndarray, clicks: Sequence[Click]) -> float:
    return wrong_by(mask, clicks[0])


def _inside_box(box: Box, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie within half a pixel of a box, bool (H, W)."""
    rows, columns = (np.arange(n) for n in shape)
    r0, c0, r1, c1 = box
    return np.logical_and.outer((rows >= r0 - 0.5) & (rows <= r1 + 0.5), (columns >= c0 - 0.5) & (columns <= c1 + 0.5))
