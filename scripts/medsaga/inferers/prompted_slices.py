"""One object in an image or volume, from points and boxes on its slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from monai.transforms.utils import generate_spatial_bounding_box

from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square, undo_fit_square

from .click_boxes import Box, margin_by_boxes
from .embedding_cache import EmbeddingCache

__all__ = ["HEADS", "PromptedSlices", "SlicePrompt"]

HEADS = ("classes", "sam", "sam_boxes")

# a followed object ends where less than this share of its mask is stable, or lies under the last slice's
_MIN_STABILITY = 0.5
_MIN_OVERLAP = 0.3
_REACH = 0.04  # standard deviation of a click's correction, of the image's longer side


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
        head: what the network's masks are. ``classes``: of a trained bundle. ``sam``: published weights' own guesses at
            one object, of which the first is for prompts that leave no doubt. ``sam_boxes``: the same of weights that
            know boxes only, see :func:`~medsaga.inferers.click_boxes.margin_by_boxes`.

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
        self, prompts: Mapping[int, SlicePrompt], target: int | None = None, propagate: bool = False
    ) -> torch.Tensor:
        """The mask of what the prompts point at.

        With ``propagate`` an object prompted on some slices is followed to the others: the box around the last mask is
        the next slice's prompt, until the object ends, its mask is no longer stable or has left the last one's place.

        Args:
            prompts: by slice, 0 in a 2-D image.
            target: class that is meant; None takes the class that the network sees there. Without effect on SAM's head.
            propagate: go on to the slices without a prompt.

        Returns:
            uint8 of 0 and 1, (H, W) or (H, W, D).

        Raises:
            ValueError: no prompt, only negative ones, or one outside the image.
        """
        self._check(prompts)
        masks = torch.zeros((self.depth, *self.shape), dtype=torch.bool)
        positive = {i: p for i, p in prompts.items() if p.inside or p.box is not None}
        if target is None and self.head == "classes":
            # one class for the whole object: it is decided where most clicks are
            most = max(positive, key=lambda i: len(positive[i].inside))
            target = self._seen_class(most, positive[most])
        for index, prompt in sorted(positive.items()):
            masks[index] = self._margin(index, prompt, target) > 0
        if propagate:
            for index in sorted(positive):
                self._follow(masks, index, 1, set(positive), target)
                self._follow(masks, index, -1, set(positive), target)
        return (masks.permute(1, 2, 0) if self.image.ndim == 4 else masks[0]).to(torch.uint8)

    def _check(self, prompts: Mapping[int, SlicePrompt]) -> None:
        if not any(p.inside or p.box is not None for p in prompts.values()):
            raise ValueError("no prompt: give at least one positive point, or a box.")
        (height, width), depth = self.shape, self.depth
        for index, prompt in prompts.items():
            corners = [prompt.box[:2], prompt.box[2:]] if prompt.box is not None else []
            for row, column in (*prompt.inside, *prompt.outside, *corners):
                if not (0 <= index < depth and -0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5):
                    raise ValueError(
                        f"a prompt at row {row:g}, column {column:g} of slice {index} is outside the image of "
                        f"{height} × {width} × {depth} voxels."
                    )

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

    def _prompted(self, index: int, prompt: SlicePrompt) -> torch.Tensor:
        """Logits (k, H, W) of a slice under its prompt."""
        clicks = [(*p, 1) for p in prompt.inside] + [(*p, 0) for p in prompt.outside]
        return self._logits(index, clicks, [prompt.box] if prompt.box is not None else [])[0]

    def _margin(self, index: int, prompt: SlicePrompt, target: int | None) -> torch.Tensor:
        """Logit of the object against all else, (H, W): above 0 it is the most likely."""
        if self.head == "sam_boxes":
            return margin_by_boxes(
                lambda boxes: self._logits(index, boxes=boxes)[:, 0],
                self.pixels(index),
                prompt.inside,
                prompt.outside,
                prompt.box,
            )
        logits = self._prompted(index, prompt)
        if self.head == "sam":
            margin = logits[0]
        else:
            margin = logits[target] - torch.cat([logits[:target], logits[target + 1 :]]).amax(dim=0)
        return _with_clicks(margin, prompt)

    def _seen_class(self, index: int, prompt: SlicePrompt) -> int:
        classes = self._prompted(index, prompt).softmax(dim=0)[1:]
        if prompt.inside:
            rows, columns = torch.tensor(prompt.inside).round().long().T
            seen = classes[:, rows, columns].mean(dim=1)
        else:
            r0, c0, r1, c1 = (round(v) for v in prompt.box)
            seen = classes[:, r0 : r1 + 1, c0 : c1 + 1].mean(dim=(1, 2))
        return int(seen.argmax()) + 1

    def _follow(self, masks: torch.Tensor, start: int, step: int, prompted: set[int], target: int | None) -> None:
        """From one prompted slice in one direction, to the object's end or half-way to the next prompted slice."""
        ahead = [(i - start) * step for i in prompted if (i - start) * step > 0]
        # the slice in the middle of two is the lower one's
        reach = (min(ahead) - (step < 0)) // 2 if ahead else self.depth
        last = start
        for index in range(start + step, start + step * (reach + 1), step):
            if not 0 <= index < self.depth or not masks[last].any():
                return
            low, high = generate_spatial_bounding_box(masks[last][None])
            # one voxel wider, as the object may grow
            box = tuple(
                float(min(max(v, 0), limit))
                for v, limit in zip((low[0] - 1, low[1] - 1, high[0], high[1]), [n - 1 for n in self.shape] * 2)
            )
            margin = self._margin(index, SlicePrompt(box=box), target)
            mask = margin > 0
            stability = int((margin > 1).sum()) / max(1, int((margin > -1).sum()))
            overlap = int((mask & masks[last]).sum()) / max(1, min(int(mask.sum()), int(masks[last].sum())))
            if stability < _MIN_STABILITY or overlap < _MIN_OVERLAP:
                return
            masks[index], last = mask, index


def _with_clicks(margin: torch.Tensor, prompt: SlicePrompt) -> torch.Tensor:
    """Where a click contradicts the mask the click is right, and its surroundings follow it, less with distance.

    The network takes clicks as hints. Without this a team could not correct what it is sure of.
    """
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in margin.shape)
    for sign, clicks in ((1, prompt.inside), (-1, prompt.outside)):
        for row, column in clicks:
            here = float(margin[round(row), round(column)]) * sign
            if here > 0:
                continue
            squares = (rows[:, None] - row) ** 2 + (columns - column) ** 2
            weight = torch.exp(-squares / (2 * (_REACH * max(margin.shape)) ** 2))
            margin = margin + sign * (1 - 2 * here) * weight
    return margin
