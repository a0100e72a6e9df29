"""The strategies of the app, which share their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.private import Private
from lib.served_model import ServedModel
from lib.strategies.background import BackgroundScoring
from lib.strategies.image_scores import ImageScores
from lib.strategies.tasks import (
    EmbeddingStrategy,
    FirstStrategy,
    MixedStrategy,
    RandomStrategy,
    UncertaintyStrategy,
)
from medsaga.active_learning import k_centre, k_medoids

__all__ = ["build_strategies", "start_background_scoring"]


def build_strategies(models: Mapping[str, ServedModel], private: Private) -> dict[str, Strategy]:
    """All strategies by the names that clients see.

    Args:
        models: by name; the first is the one by which images are chosen unless a request names another.
        private: where scores are kept.
    """
    background = BackgroundScoring({name: ImageScores(model, private) for name, model in models.items()})
    strategies = [
        RandomStrategy(),
        FirstStrategy(),
        UncertaintyStrategy("entropy", "Image whose segmentation has the highest entropy", background),
        UncertaintyStrategy("disagreement", "Image segmented differently when it is altered a little", background),
        EmbeddingStrategy("diversity", "Image most unlike the labelled ones", background, k_centre),
        EmbeddingStrategy("representative", "Image that is like many unlabelled ones", background, k_medoids),
        MixedStrategy(background),
    ]
    return {strategy.name: strategy for strategy in strategies}


def start_background_scoring(
    strategies: Mapping[str, Strategy], datastore: Datastore, unasked: bool = True
) -> Callable[[], None]:
    """Keep the strategies' scores up to date, from now until the server ends.

    To be called where the server starts (``on_init_complete``), which a process that trains does not come by.

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
