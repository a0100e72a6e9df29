"""Which image an annotator gets next."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.strategies.background import BackgroundScoring
from lib.strategies.holds import available
from lib.strategies.image_scores import ImageScores, pool
from medsaga.active_learning import k_medoids, mixed

__all__ = [
    "EmbeddingStrategy",
    "FirstStrategy",
    "MixedStrategy",
    "RandomStrategy",
    "UncertaintyStrategy",
]

logger = logging.getLogger(__name__)

_BUDGET = 10.0  # seconds

_Choose = Callable[[torch.Tensor, Sequence[int], int], list[int]]


class _HandOut(Strategy):
    """Unlabelled images only, and none that another annotator has.

    Request parameters: ``client_id``, who asks. He gets the image again that he was handed by this strategy and has not
    labelled; it is held for him for an hour. Clients without an id get what nobody has, and after that what was handed
    out the longest ago to one of them.

    Args:
        name: by which clients ask for it.
        description: for clients.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(description)
        self.name = name
        self._unusable: set[str] = set()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """
        Returns:
            ``id`` of the image and ``strategy_used``, with ``why`` where that is not the one that was asked;
            None when every image is labelled, held for others, or cannot be read.
        """
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        while answer := self._next([i for i in images if i not in self._unusable], request, datastore):
            try:
                datastore.get_image_uri(answer["id"])  # a series of a DICOM store is fetched and read now
                return answer
            except HTTPException as err:
                if err.status_code != 422:
                    raise
                logger.warning("%s is not handed out. %s", answer["id"], err.detail)
                self._unusable.add(answer["id"])
        return None

    def _next(self, images: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        now = available(images, datastore, self.name, request.get("client_id"))
        if now.own:
            return {"id": now.own, "strategy_used": self.name, "why": "handed to this client before"}
        if now.free:
            return self.choose(now.free, now.held, request, datastore)
        if now.again:
            return {
                "id": now.again[0],
                "strategy_used": self.name,
                "why": "all have been handed out; this the longest ago",
            }
        return None

    @abstractmethod
    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Choose one of ``free``, which is not empty; ``held`` will be labelled by others."""


class FirstStrategy(_HandOut):
    """The first by name."""

    def __init__(self) -> None:
        super().__init__("first", "First image by name")

    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        return {"id": free[0], "strategy_used": self.name}


class RandomStrategy(_HandOut):
    """By chance. With the request parameter ``seed`` it goes through one fixed order of all images."""

    def __init__(self) -> None:
        super().__init__("random", "Random image")

    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        return {"id": _draw(free, request), "strategy_used": self.name}


class _Scored(_HandOut):
    """Compares images by what a bundle's networks make of them.

    Further request parameters: ``model``, the bundle, by default the first; ``budget``, seconds that the request may
    compute scores that are not there yet. Images that are scored by then compete.

    Args:
        name: by which clients ask for it.
        description: for clients.
        background: with the scores of all bundles.
        kinds: of scores that it goes by.
    """

    def __init__(self, name: str, description: str, background: BackgroundScoring, kinds: Sequence[str]) -> None:
        super().__init__(name, description)
        self.background = background
        self.kinds = kinds

    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        bundle = request.get("model") or next(iter(self.background.scores))
        if bundle not in self.background.scores:
            known = ", ".join(self.background.scores)
            raise HTTPException(404, f"There is no model {bundle!r} to choose images by; known are {known}.")
        scores = self.background.scores[bundle]
        with self.background.paused_for(bundle, self.kinds):
            answer = self.rank(scores, pool(free), held, request, datastore)
        if answer is None:
            why = f"no image has been scored by {bundle} yet"
            answer = {"id": _draw(free, request), "strategy_used": "random", "why": why}
        return {**answer, "model": bundle}

    @abstractmethod
    def rank(
        self, scores: ImageScores, images: list[str], held: list[str], request: dict[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        """The answer, None where no image can be scored."""


class EmbeddingStrategy(_Scored):
    """Chooses by SAM's embeddings of the images, labelled ones and those being labelled among them.

    Args:
        name: by which clients ask for it.
        description: for clients.
        background: with the scores of all bundles.
        choose: takes embeddings, the rows of the labelled ones and how many to choose, and gives that many further
            rows, as :func:`medsaga.active_learning.k_centre` does.
    """

    def __init__(self, name: str, description: str, background: BackgroundScoring, choose: _Choose) -> None:
        super().__init__(name, description, background, ["embedding"])
        self.choose_rows = choose

    def rank(
        self, scores: ImageScores, images: list[str], held: list[str], request: dict[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        return _by_embedding(self.choose_rows, self.name, scores, images, held, request, datastore)


class _NeedsTraining(_Scored):
    """Goes by representative images as long as the bundle has no trained model."""

    def rank(
        self, scores: ImageScores, images: list[str], held: list[str], request: dict[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        answer = None
        if scores.model.trained:
            answer = self.rank_trained(scores, images, held, request, datastore)
            why = f"no image has been scored by the trained {scores.model.name} yet"
            request = {**request, "budget": 0}  # it is spent
        else:
            why = f"{self.name} needs a trained {scores.model.name}"
        if answer is None:
            answer = _by_embedding(k_medoids, "representative", scores, images, held, request, datastore)
            answer = answer and {**answer, "why": why}
        return answer

    @abstractmethod
    def rank_trained(
        self, scores: ImageScores, images: list[str], held: list[str], request: dict[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        """The answer, None where no image can be scored."""


class UncertaintyStrategy(_NeedsTraining):
    """The image that the trained model is least sure of.

    Args:
        name: ``entropy`` or ``disagreement``.
        description: for clients.
        background: with the scores of all bundles.
    """

    def __init__(self, name: str, description: str, background: BackgroundScoring) -> None:
        super().__init__(name, description, background, ["embedding", name])

    def rank_trained(
        self, scores: ImageScores, images: list[str], held: list[str], request: dict[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        known = _known(scores, {self.name: images}, request, datastore)[self.name]
        if not known:
            return None
        best = max(known, key=lambda image: known[image])
        return {"id": best, "strategy_used": self.name, "score": known[best], "scored": len(known)}


class MixedStrategy(_NeedsTraining):
    """Of the quarter of images with the highest entropy the one that stands for the most unlabelled ones."""

    def __init__(self, background: BackgroundScoring) -> None:
        description = "Uncertain image that is like many unlabelled ones"
        super().__init__("mixed", description, background, ["embedding", "entropy"])

    def rank_trained(
        self, scores: ImageScores, images: list[str], held: list[str], request: dict[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        centres = pool([*datastore.get_labeled_images(), *held])
        known = _known(scores, {"entropy": images, "embedding": [*centres, *images]}, request, datastore)
        entropy, embedding = known["entropy"], known["embedding"]
        images, centres = [i for i in images if i in entropy and i in embedding], [i for i in centres if i in embedding]
        if not images:
            return None
        embeddings = torch.tensor([embedding[i] for i in [*images, *centres]])
        uncertainty = torch.tensor([entropy[i] for i in images] + [0.0] * len(centres))
        best = images[mixed(embeddings, uncertainty, range(len(images), len(embeddings)), 1)[0]]
        return {"id": best, "strategy_used": self.name, "score": entropy[best], "scored": len(images)}


def _by_embedding(
    choose: _Choose,
    strategy: str,
    scores: ImageScores,
    images: list[str],
    held: list[str],
    request: dict[str, Any],
    datastore: Datastore,
) -> dict[str, Any] | None:
    """The answer of a strategy that chooses by embeddings, None where no image has one."""
    centres = pool([*datastore.get_labeled_images(), *held])
    known = _known(scores, {"embedding": [*centres, *images]}, request, datastore)["embedding"]
    images, centres = ([i for i in group if i in known] for group in (images, centres))
    if not images:
        return None
    embeddings = torch.tensor([known[i] for i in [*images, *centres]])
    chosen = choose(embeddings, range(len(images), len(embeddings)), 1)[0]
    return {"id": images[chosen], "strategy_used": strategy, "scored": len(images)}


def _draw(images: Sequence[str], request: dict[str, Any]) -> str:
    seed = request.get("seed")
    if seed is None:
        return random.choice(images)
    # by checksum: which images are left and held changes nothing about the order of the others
    return min(images, key=lambda image: hashlib.sha256(f"{seed} {image}".encode()).digest())


def _known(
    scores: ImageScores, wanted: dict[str, list[str]], request: dict[str, Any], datastore: Datastore
) -> dict[str, dict[str, Any]]:
    """Scores by kind and image, after computing what is missing for as long as the request allows."""
    budget = request.get("budget", _BUDGET)
    try:
        share = float(budget) / len(wanted)
    except (TypeError, ValueError) as err:
        raise HTTPException(422, f"budget={budget!r} must be a number of seconds.") from err
    for kind, images in wanted.items():
        deadline = time.monotonic() + share
        scores.compute(images, kind, datastore, lambda end=deadline: time.monotonic() >= end)
    return {kind: scores.known(images, kind) for kind, images in wanted.items()}
