"""Each submitted label tells how good the model's proposal was: a line in ``.medsaga/scores.jsonl``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.scoring.compare import compare_labels
from lib.served_model import ServedModel
from lib.stores import FolderStore

__all__ = ["Pair", "proposal_and_label", "score_submission"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A model's proposal and a label of the same image, in this order."""

    model: ServedModel
    files: tuple[str, str]
    infos: tuple[dict[str, Any], dict[str, Any]]


def proposal_and_label(
    datastore: FolderStore,
    image_id: str,
    models: Mapping[str, ServedModel],
    proposal_tag: str = DefaultLabelTag.ORIGINAL.value,
    label_tag: str = DefaultLabelTag.FINAL.value,
) -> Pair | None:
    """The two labels to compare.

    Returns:
        None where one is missing, where no served model made the proposal, or where the label has another model's
        classes.
    """
    entry = datastore.json()["objects"].get(image_id, {"labels": {}})
    labels = [entry["labels"].get(tag) for tag in (proposal_tag, label_tag)]
    if not all(labels):
        return None
    infos = tuple(label["info"] for label in labels)
    model = models.get(infos[0].get("model"))
    if model is None or model.name not in infos[1].get("models", [model.name]):
        return None
    # by the local copy, also with a DICOM store
    files = tuple(LocalDatastore.get_label_uri(datastore, image_id, tag) for tag in (proposal_tag, label_tag))
    return Pair(model, files, infos) if all(os.path.isfile(file) for file in files) else None


def score_submission(datastore: FolderStore, image_id: str, models: Mapping[str, ServedModel]) -> dict[str, Any] | None:
    """Score the proposal for an image against the label just submitted; does nothing where there was no proposal.

    Called in a thread of its own, so that annotators do not wait; what goes wrong is logged.

    Args:
        datastore: with the labels.
        image_id: of the image.
        models: served models by name.

    Returns:
        what was added to the scores, and to the image's info as ``scores``: ``time`` (ISO, UTC), ``image``, ``model``,
        ``model_version``, ``annotator``, ``seen`` (the image had been labelled before this proposal, so that the model
        may have learnt from it), ``dice`` and ``hd95`` by class name.
    """
    try:
        pair = proposal_and_label(datastore, image_id, models)
        if pair is None:
            return None
        proposal, label = pair.infos
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "image": image_id,
            "model": pair.model.name,
            "model_version": proposal.get("version"),
            "annotator": label.get("annotator"),
            "seen": label.get("first_saved", float("inf")) < proposal.get("ts", 0),
            **compare_labels(*pair.files, pair.model.labels, slices=label.get("labelled_slices")),
        }
        with open(datastore.private.scores, "a") as scores:
            scores.write(json.dumps(line) + "\n")
        datastore.update_image_info(image_id, {"scores": line})
    except Exception:
        logger.exception(f"The proposal for {image_id} was not scored.")
        return None
    return line
