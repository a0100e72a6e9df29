"""Embeddings of the slices around the shown one, computed while the annotator looks at the answer."""

from __future__ import annotations

import threading

from lib.served_model import COMPUTING
from medsaga.inferers import PromptedSlices

__all__ = ["Prefetcher"]

_REACH = 8  # slices to each side
_PATIENCE = 0.5  # seconds without a request before it starts, so that a burst of clicks is not disturbed


class Prefetcher:
    """One background thread that embeds slices, nearest first, and makes way for requests between two slices."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def pause(self) -> None:
        """Stop after the slice that is being embedded."""
        self._stop.set()

    def start(self, slices: PromptedSlices, shown: int) -> None:
        """Embed the slices around ``shown``, instead of those of an earlier call.

        Args:
            slices: whose cache is filled.
            shown: index of the slice the annotator looks at.
        """
        self._stop.set()
        stop = self._stop = threading.Event()
        near = sorted(range(slices.depth), key=lambda i: abs(i - shown))[: 2 * _REACH + 1]
        self._thread = threading.Thread(target=self._run, args=(stop, near, slices), name="prefetch", daemon=True)
        self._thread.start()

    @staticmethod
    def _run(stop: threading.Event, indices: list[int], slices: PromptedSlices) -> None:
        if stop.wait(_PATIENCE):
            return
        for index in indices:
            if stop.is_set():
                return
            with COMPUTING:
                slices.embed(index)
