"""Scores computed before they are asked for."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from monailabel.interfaces.datastore import Datastore
from monailabel.utils.async_tasks.utils import processes

from lib.served_model import in_use
from lib.strategies.image_scores import KINDS, ImageScores, pool

__all__ = ["BackgroundScoring"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0  # between looks for new images and new weights


class BackgroundScoring:
    """One daemon thread that keeps scores up to date, and makes way for requests between two batches of slices.

    It waits while a model trains: on a CPU, training would take twice as long, and it makes the scores outdated.

    Only what is asked for is computed: the images of a store are seldom those of all bundles, and disagreement takes
    several times as long as the rest. Embedding and entropy of the first bundle count as asked for, unless each image
    would first have to be fetched from a PACS.

    Args:
        scores: by bundle.
    """

    def __init__(self, scores: Mapping[str, ImageScores]) -> None:
        self.scores = scores
        self.wanted: dict[str, set[str]] = {}
        self._stop = threading.Event()
        self._requests = 0
        self._count = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def paused_for(self, bundle: str, kinds: Iterable[str]) -> Iterator[None]:
        """Pause while a request computes these scores of a bundle itself; from then on they are kept up to date."""
        with self._count:
            self._requests += 1
            self.wanted.setdefault(bundle, set()).update(kinds)
        try:
            yield
        finally:
            with self._count:
                self._requests -= 1

    def start(self, datastore: Datastore, unasked: bool = True) -> None:
        """Start the thread, in the server and not in a process that trains.

        Args:
            datastore: with the images.
            unasked: whether the first bundle's scores are computed before anybody has asked for any.
        """
        if self._thread is None:
            if unasked:
                self.wanted.setdefault(next(iter(self.scores)), set()).update(("embedding", "entropy"))
            self._thread = threading.Thread(target=self._run, args=(datastore,), name="scoring", daemon=True)
            self._thread.start()
            # a thread that computes while the interpreter shuts down would crash it
            atexit.register(self.stop)

    def stop(self) -> None:
        """Stop after the current batch."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.stop)

    def _give_up(self) -> bool:
        return self._stop.is_set() or self._requests > 0 or in_use() or bool(processes("train"))

    def _run(self, datastore: Datastore) -> None:
        while not self._stop.is_set():
            if self._give_up():
                self._stop.wait(0.1)
                continue
            done = True
            try:
                for bundle, kinds in list(self.wanted.items()):
                    done = self._update(self.scores[bundle], kinds, datastore) and done
            except Exception:  # a store that cannot be reached, or changes while it is listed: try again
                logger.warning("Images could not be scored; trying again.", exc_info=True)
            if done:
                self._stop.wait(_LOOK_SECONDS)

    def _update(self, scores: ImageScores, kinds: set[str], datastore: Datastore) -> bool:
        unlabelled, labelled = pool(datastore.get_unlabeled_images()), pool(datastore.get_labeled_images())
        for kind in (kind for kind in KINDS if kind in kinds):
            images = [*labelled, *unlabelled] if kind == "embedding" else unlabelled
            if not scores.compute(images, kind, datastore, self._give_up):
                return False
        return True
