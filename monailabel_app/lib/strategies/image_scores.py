"""What strategies know of a bundle's images: embeddings and uncertainties, computed once for each set of weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore

from lib.private import Private
from lib.served_model import COMPUTING, ServedModel
from lib.strategies.score_store import ScoreStore
from medsaga.active_learning import disagreement, image_embedding, mean_entropy
from medsaga.bundle.errors import root_cause
from medsaga.networks import SamSegmenter

__all__ = ["KINDS", "MAX_POOL", "ImageScores", "pool"]

logger = logging.getLogger(__name__)

KINDS = ("embedding", "entropy", "disagreement")

# A store may be a hospital's archive. At most this many images, drawn at random, are fetched, scored and compared.
MAX_POOL = 500

_UNCERTAINTY = {"entropy": mean_entropy, "disagreement": disagreement}


def pool(images: Iterable[str]) -> list[str]:
    """At most :data:`MAX_POOL` of the images, in an order that depends on their names only and means nothing."""
    return sorted(images, key=lambda image: hashlib.sha256(image.encode()).digest())[:MAX_POOL]


class _GaveUpError(Exception):
    """The time is up, or someone else is to go first."""


class ImageScores:
    """Scores of one bundle.

    Embeddings come from the published weights that the bundle starts from, so that they outlive each training; where
    there are none, from the trained ones. Uncertainties are those of the trained ones.

    Args:
        model: the bundle.
        private: where scores are kept.
    """

    def __init__(self, model: ServedModel, private: Private) -> None:
        self.model = model
        self.store = ScoreStore(partial(private.image_scores, model.name))
        self._failed: set[tuple[str, str, str]] = set()  # image, kind, version
        self._unusable: set[tuple[str, str]] = set()  # kind, version
        self._published: SamSegmenter | None = None

    def version(self, kind: str) -> str | None:
        """Names the weights by which a kind of score is computed now, None where there are none."""
        candidates = []
        if kind == "embedding" and self.model.pretrained is not None:
            candidates.append(f"{self.model.pretrained}@{self.model.image_size}")
        if self.model.trained:
            candidates.append(self.model.version())
        return next((version for version in candidates if (kind, version) not in self._unusable), None)

    def known(self, images: Sequence[str], kind: str) -> dict[str, Any]:
        """Scores that are there, by image."""
        version = self.version(kind)
        if version is None:
            return {}
        found = {image: self.store.get(image, kind, version) for image in images}
        return {image: value for image, value in found.items() if value is not None}

    def compute(self, images: Sequence[str], kind: str, datastore: Datastore, give_up: Callable[[], bool]) -> bool:
        """Compute what is missing, one image after the other. An image that cannot be scored is named and left out.

        Args:
            images: their ids.
            kind: one of :data:`KINDS`.
            datastore: that has them.
            give_up: asked before each batch of slices whether to leave the rest.

        Returns:
            False when it gave up before the end.
        """
        version = self.version(kind)
        if version is None:
            return True
        known = self.known(images, kind)
        missing = [i for i in images if i not in known and (i, kind, version) not in self._failed]
        if not missing:
            return True
        if give_up():
            return False
        try:
            network, device = self._network(kind, version)
        except HTTPException as err:
            logger.warning("%s: the %s of images cannot be computed. %s", self.model.name, kind, err.detail)
            self._unusable.add((kind, version))
            # with the trained weights where published ones cannot be had
            return self.compute(images, kind, datastore, give_up)
        for image in missing:
            if give_up():
                return False
            try:
                path = datastore.get_image_uri(image)
                value = self._score(network, device, path, kind, give_up)
            except _GaveUpError:
                return False
            except Exception as err:
                if isinstance(err, torch.OutOfMemoryError):
                    self.model.free_memory()
                reason = err.detail if isinstance(err, HTTPException) else root_cause(err)
                logger.warning("%s: %s is left out of active learning (%s). %s", self.model.name, image, kind, reason)
                self._failed.add((image, kind, version))
                continue
            if self.version(kind) == version:  # else the value may be of the old or the new weights
                self.store.put(image, path, kind, version, value)
        return True

    def _network(self, kind: str, version: str) -> tuple[SamSegmenter, str]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if kind != "embedding" or not version.startswith(f"{self.model.pretrained}@"):
            return self.model.network(device), device
        with COMPUTING:  # a request and the background may both be the first
            if self._published is None:
                published = self.model.sam_network(device)
                if published.image_size != self.model.image_size:
                    # for prompts, this network gets larger images than the bundle's, which takes several times as long
                    published = SamSegmenter(
                        published.encoder,
                        self.model.image_size,
                        published.num_classes,
                        self.model.pretrained,
                        in_channels=published.in_channels,
                    )
                self._published = published.to(device).eval()
            return self._published, device

    def _score(
        self, network: SamSegmenter, device: str, path: str, kind: str, give_up: Callable[[], bool]
    ) -> float | list[float]:
        image = self.model.prepare(path)

        def polite(compute: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
            def batch_by_batch(batch: torch.Tensor) -> torch.Tensor:
                if give_up():
                    raise _GaveUpError
                with COMPUTING:
                    return compute(batch.to(device)).cpu()

            return batch_by_batch

        size = network.image_size
        # what the lock is held for must be short: one slice, or a few where they are small
        batch_size = min(4, max(1, (256 // size) ** 2))
        if kind == "embedding":
            vector = image_embedding(polite(network.encode), image, size, batch_size)
            return [round(x, 6) for x in vector.tolist()]
        return _UNCERTAINTY[kind](polite(network), image, size, batch_size)
