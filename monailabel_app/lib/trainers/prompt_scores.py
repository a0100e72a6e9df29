"""How well weights follow prompts: a simulated annotator, who knows the truth, prompts a few objects."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from fastapi import HTTPException
from monai.bundle import ConfigParser

from lib.served_model import ServedModel
from medsaga.data.case import inputs_of
from medsaga.experiments.prompting import prompted, title
from medsaga.networks import SamSegmenter

__all__ = ["prompt_scores"]

logger = logging.getLogger(__name__)

# Each is a class of a case on one slice. Most of the time is for encoding the slice, whatever the size of the image:
# 0.5 to 1 s for each by LiteMedSAM's network on two cores. A training encodes hundreds.
_OBJECTS = 8
_CLICKS = (1, 3)
_PROMPTS = ("box", *(title(count) for count in _CLICKS))


def prompt_scores(
    network: SamSegmenter, model: ServedModel, cases: Sequence[Mapping[str, str]], parser: ConfigParser
) -> tuple[float | None, float | None]:
    """Mean Dice over some objects after a box, after one click and after three, as the app answers them.

    Args:
        network: with the weights to measure; it is in ``eval()`` afterwards.
        model: the bundle.
        cases: with ``image`` and ``label``, files.
        parser: the bundle's training config.

    Returns:
        of the network, and of the published weights on the same objects; both None if there is no object, the bundle
        starts from no weights, these cannot be obtained, or a GPU lacks memory for both networks.
    """
    if model.pretrained is None or not cases:
        return None, None
    device = str(network.pixel_mean.device)
    names = parser.get_parsed_content("class_names")
    found: tuple[list[float], list[float]] = [], []
    try:
        networks = ((network.eval(), "classes"), (model.sam_network(device), model.sam_head))
        for case in _objects(cases, parser, len(names)):
            for scores, (one, head) in zip(found, networks):
                objects = prompted(one, case, "", names, _CLICKS, 1, head, boxed_at=(0,), automatic=False)
                scores += [float(np.mean([thing.dice[prompt] for prompt in _PROMPTS])) for thing in objects]
    except (HTTPException, torch.OutOfMemoryError) as err:
        reason = err.detail if isinstance(err, HTTPException) else err
        logger.warning("%s: it cannot be measured how well its weights follow prompts. %s", model.name, reason)
        return None, None
    return tuple(float(np.mean(scores)) if scores else None for scores in found)


def _objects(
    cases: Sequence[Mapping[str, str]], parser: ConfigParser, classes: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The prepared cases; each label keeps only some of its classes, so that a few objects come from many cases."""
    preprocessing = parser.get_parsed_content("preprocessing")
    cases, left, turn = cases[:_OBJECTS], _OBJECTS, 1
    for index, case in enumerate(cases):
        prepared = preprocessing(inputs_of(case))
        label = prepared["label"]
        present = [number for number in range(1, classes) if (label == number).any()]
        share = -(-left // (len(cases) - index))
        # other classes than the last case's first
        chosen = sorted(present, key=lambda number: (number < turn, number))[:share]
        if not chosen:
            continue
        left, turn = left - len(chosen), chosen[-1] + 1
        wanted = torch.isin(label.as_tensor(), torch.tensor(chosen, dtype=label.dtype))
        yield {"image": prepared["image"].as_tensor(), "label": label.as_tensor() * wanted}
