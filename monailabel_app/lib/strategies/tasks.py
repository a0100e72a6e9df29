"""Which image an annotator gets next."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.private import Private
from lib.served_model import ServedModel
from lib.strategies.background import BackgroundScoring
from lib.strategies.holds import available
from lib.strategies.image_scores import ImageScores, pool
from lib.strategies.slice_choice import SliceChoice
from medsaga.active_learning import k_centre, k_medoids, mixed

__all__ = ["build_strategies", "start_background_scoring"]

logger = logging.getLogger(__name__)

_BUDGET = 10.0  # seconds

# as medsaga.active_learning.k_centre: takes embeddings, the rows of the labelled ones and how many further rows to give
_Choose = Callable[[torch.Tensor, Sequence[int], int], list[int]]


class _HandOut(Strategy):
    """Hands out unlabelled images only, and none that another annotator has.

    Request parameters: ``slices``, how many slices of a volume to label, which :class:`SliceChoice` then names;
    ``image``, one that the client has already, so that none is chosen; ``client_id``, who asks. He gets the image again
    that he was handed by this strategy and has not labelled; it is held for him for an hour. Clients without an id get
    what nobody has, and after that what was handed out the longest ago to one of them.

    Args:
        name: by which clients ask for it.
        description: for clients.
    """

    slice_choice: SliceChoice  # set by build_strategies, as all share one

    def __init__(self, name: str, description: str) -> None:
        super().__init__(description)
        self.name = name
        self._unusable: set[str] = set()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """
        Returns:
            ``id`` of the image and ``strategy_used``, with ``why`` where that is not the one that was asked, and
            ``slices`` where they were asked for;
            None when every image is labelled, held for others, or cannot be read.

        Raises:
            HTTPException: 404 when there is no ``image`` of this id, 422 when it cannot be read.
        """
        if image := request.get("image"):
            return {"id": image, "strategy_used": self.name, **self._asked(datastore.get_image_uri(image), request)}
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        while answer := self._next([i for i in images if i not in self._unusable], request, datastore):
            try:
                path = datastore.get_image_uri(answer["id"])  # a series of a DICOM store is fetched and read now
                return {**answer, **self._asked(path, request)}
            except HTTPException as err:
                if err.status_code != 422:
                    raise
                logger.warning("%s is left out of the choice of images. %s", answer["id"], err.detail)
                self._unusable.add(answer["id"])
        return None

    def _asked(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The slices of an image to label, where some are asked for."""
        return self.slice_choice(path, request) if request.get("slices") else {}

    def _next(self, images: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        now = available(images, datastore, self.name, request.get("client_id"))
        if now.own:
            return {"id": now.own, "strategy_used": self.name, "why": "handed to this client before"}
        if now.free:
            return self.choose(now.free, now.held, request, datastore)
        if now.again:
            why = "all images have been handed out, this one the longest ago"
            return {"id": now.again[0], "strategy_used": self.name, "why": why}
        return None

    @abstractmethod
    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Choose one of ``free``, which is not empty; ``held`` will be labelled by others."""


class FirstStrategy(_HandOut):
    """The first by name."""

    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        return {"id": free[0], "strategy_used": self.name}


class RandomStrategy(_HandOut):
    """By chance. With the request parameter ``seed`` it goes through one fixed order of all images."""

    def choose(self, free: list[str], held: list[str], request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        return {"id": _draw(free, request), "strategy_used": self.name}


def _draw(images: Sequence[str], request: dict[str, Any]) -> str:
    seed = request.get("seed")
    if seed is None:
        return random.choice(images)
    # by checksum: which images are left and held changes nothing about the order of the others
    return min(images, key=lambda image: hashlib.sha256(f"{seed} {image}".encode()).digest())


@dataclass(frozen=True)
class _Choice:
    """The images that a request may choose from, and the scores to choose by.

    Args:
        scores: of the bundle.
        images: to choose one of.
        centres: those that are labelled, or are being labelled.
        budget: seconds for computing scores that are not there yet.
        datastore: with the images.
    """

    scores: ImageScores
    images: list[str]
    centres: list[str]
    budget: Any
    datastore: Datastore

    def known(self, wanted: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
        """Scores by kind and image, after computing what is missing for as long as the budget allows."""
        try:
            share = float(self.budget) / len(wanted)
        except (TypeError, ValueError) as err:
            raise HTTPException(422, f"budget={self.budget!r}: it must be a number of seconds.") from err
        for kind, images in wanted.items():
            deadline = time.monotonic() + share
            self.scores.compute(images, kind, self.datastore, lambda end=deadline: time.monotonic() >= end)
        return {kind: self.scores.known(images, kind) for kind, images in wanted.items()}

    def by_embedding(self, choose: _Choose, strategy: str) -> dict[str, Any] | None:
        """The answer of a strategy that chooses by embeddings, None where no image has one."""
        known = self.known({"embedding": [*self.centres, *self.images]})["embedding"]
        images, centres = ([i for i in group if i in known] for group in (self.images, self.centres))
        if not images:
            return None
        embeddings = torch.tensor([known[i] for i in [*images, *centres]])
        chosen = choose(embeddings, range(len(images), len(embeddings)), 1)[0]
        return {"id": images[chosen], "strategy_used": strategy, "scored": len(images)}


class _Scored(_HandOut):
    """Compares images by scores of a bundle's networks, of some of the kinds that ``background`` computes.

    Further request parameters: ``model``, the bundle, by default the first; ``budget``, seconds that the request may
    compute scores that are not there yet. Only images that have a score by then are compared.
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
        centres = pool([*datastore.get_labeled_images(), *held])
        budget = request.get("budget", _BUDGET)
        with self.background.paused_for(bundle, self.kinds):
            answer = self.rank(_Choice(self.background.scores[bundle], pool(free), centres, budget, datastore))
        if answer is None:
            why = f"no image has been scored by {bundle} yet"
            answer = {"id": _draw(free, request), "strategy_used": "random", "why": why}
        return {**answer, "model": bundle}

    @abstractmethod
    def rank(self, choice: _Choice) -> dict[str, Any] | None:
        """The answer, None where no image can be scored."""


class EmbeddingStrategy(_Scored):
    """Chooses by SAM's embeddings of the images, labelled ones and those being labelled among them."""

    def __init__(self, name: str, description: str, background: BackgroundScoring, choose: _Choose) -> None:
        super().__init__(name, description, background, ["embedding"])
        self.choose_rows = choose

    def rank(self, choice: _Choice) -> dict[str, Any] | None:
        return choice.by_embedding(self.choose_rows, self.name)


class _NeedsTraining(_Scored):
    """Chooses representative images as long as the bundle has no trained model."""

    def rank(self, choice: _Choice) -> dict[str, Any] | None:
        model = choice.scores.model
        if model.trained:
            if answer := self.rank_trained(choice):
                return answer
            why = f"no image has been scored by the trained {model.name} yet"
            choice = replace(choice, budget=0)  # it is spent
        else:
            why = f"{self.name} needs a trained {model.name}"
        answer = choice.by_embedding(k_medoids, "representative")
        return answer and {**answer, "why": why}

    @abstractmethod
    def rank_trained(self, choice: _Choice) -> dict[str, Any] | None:
        """The answer, None where no image can be scored."""


class UncertaintyStrategy(_NeedsTraining):
    """The image that the trained model is least sure of; named by its score, ``entropy`` or ``disagreement``."""

    def __init__(self, name: str, description: str, background: BackgroundScoring) -> None:
        super().__init__(name, description, background, ["embedding", name])

    def rank_trained(self, choice: _Choice) -> dict[str, Any] | None:
        known = choice.known({self.name: choice.images})[self.name]
        if not known:
            return None
        best = max(known, key=lambda image: known[image])
        return {"id": best, "strategy_used": self.name, "score": known[best], "scored": len(known)}


class MixedStrategy(_NeedsTraining):
    """Of the quarter of images with the highest entropy, the one that represents the most unlabelled images."""

    def rank_trained(self, choice: _Choice) -> dict[str, Any] | None:
        known = choice.known({"entropy": choice.images, "embedding": [*choice.centres, *choice.images]})
        entropy, embedding = known["entropy"], known["embedding"]
        images = [i for i in choice.images if i in entropy and i in embedding]
        centres = [i for i in choice.centres if i in embedding]
        if not images:
            return None
        embeddings = torch.tensor([embedding[i] for i in [*images, *centres]])
        uncertainty = torch.tensor([entropy[i] for i in images] + [0.0] * len(centres))
        best = images[mixed(embeddings, uncertainty, range(len(images), len(embeddings)), 1)[0]]
        return {"id": best, "strategy_used": self.name, "score": entropy[best], "scored": len(images)}


def build_strategies(models: Mapping[str, ServedModel], private: Private) -> dict[str, Strategy]:
    """All strategies by the names that clients see; they share their scores.

    Args:
        models: by name; the first is the one by which images are chosen unless a request names another.
        private: where scores are kept.
    """
    background = BackgroundScoring({name: ImageScores(model, private) for name, model in models.items()})
    strategies = [
        RandomStrategy("random", "Random image"),
        FirstStrategy("first", "First image by name"),
        UncertaintyStrategy("entropy", "Image whose segmentation has the highest entropy", background),
        UncertaintyStrategy(
            "disagreement", "Image whose segmentation changes most when it is altered a little", background
        ),
        EmbeddingStrategy("diversity", "Image most unlike the labelled ones", background, k_centre),
        EmbeddingStrategy("representative", "Image that is like many unlabelled ones", background, k_medoids),
        MixedStrategy(
            "mixed", "Uncertain image that is like many unlabelled ones", background, ["embedding", "entropy"]
        ),
    ]
    slice_choice = SliceChoice(models)
    for strategy in strategies:
        strategy.slice_choice = slice_choice
    return {strategy.name: strategy for strategy in strategies}


def start_background_scoring(
    strategies: Mapping[str, Strategy], datastore: Datastore, unasked: bool = True
) -> Callable[[], None]:
    """Keep the strategies' scores up to date, from now until the server ends.

    Call it where the server starts (``on_init_complete``); a process that trains does not run that.

    Args:
        strategies: by :func:`build_strategies`.
        datastore: the app's.
        unasked: see :meth:`BackgroundScoring.start`.

    Returns:
        what ends it, at the latest after one batch of slices.
    """
    background = strategies["diversity"].background
    background.start(datastore, unasked)
    return background.stop
