"""An exported network against the network it was made from: equal results, and the time of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from medsaga.networks import SamSegmenter

from .exported import RUN_PRECISIONS, ExportedSegmenter

__all__ = ["differences", "seconds_in_turns", "timings"]

_BOXES = 4  # as many as BoxInferer decodes at once


def _inputs(network: SamSegmenter, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random, size = torch.Generator().manual_seed(seed), network.image_size
    image = torch.rand(1, network.channel_counts[-1], size, size, generator=random)
    corners = torch.rand(_BOXES, 2, 2, generator=random).sort(dim=1).values * size
    return image, corners.flatten(1)


@torch.no_grad()
def differences(network: SamSegmenter, exported: ExportedSegmenter, seed: int = 0) -> dict[str, float]:
    """Largest difference of the logits on an image of noise, in units of the largest logit.

    Args:
        network: in ``eval()`` on a CPU.
        exported: the same, exported.
        seed: of image and boxes.

    Returns:
        ``automatic`` and ``boxes``.
    """
    image, boxes = _inputs(network, seed)
    pairs = {
        "automatic": (network(image), exported(image)),
        "boxes": (network(image, boxes=boxes), exported(image, boxes=boxes)),
    }
    return {name: float((a - b).abs().max() / a.abs().max()) for name, (a, b) in pairs.items()}


def seconds_in_turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call. They take turns, so that other work on the machine slows all alike.

    The first call of each is not measured, because it compiles and fills torch's caches.
    """
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, taken):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in taken]


@torch.no_grad()
def timings(network: SamSegmenter, folder: str | Path, repeats: int) -> list[dict[str, str | float]]:
    """Median seconds of encoding a slice, decoding it, and decoding a box of four at once, in turns.

    Args:
        network: in ``eval()`` on a CPU.
        folder: the same, exported.
        repeats: measured runs of each.

    Returns:
        rows with ``what``, and seconds by ``torch`` and by each precision of the export.
    """
    image, boxes = _inputs(network, seed=0)
    networks = {"torch": network, **{p: ExportedSegmenter(folder, p) for p in RUN_PRECISIONS}}
    embedding = network.encode(image)
    work: dict[str, tuple[int, Callable]] = {
        "slice, automatic": (1, lambda n: n(image)),
        "embedding of a slice": (1, lambda n: n.encode(image)),
        "decoding without prompts": (1, lambda n: n.decode(embedding)),
        "decoding of a box": (_BOXES, lambda n: n.decode(embedding, boxes=boxes)),
    }
    rows = []
    for what, (count, call) in work.items():
        seconds = seconds_in_turns([partial(call, one) for one in networks.values()], repeats)
        rows.append({"what": what, **{name: value / count for name, value in zip(networks, seconds)}})
    return rows
