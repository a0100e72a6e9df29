"""MONAI Label's scoring methods: all proposals against the labels in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.scoring.compare import compare_labels
from lib.scoring.submission import proposal_and_label
from lib.served_model import ServedModel
from lib.stores import FolderStore

__all__ = ["DiceScore", "HausdorffScore"]


class _ProposalScore(ScoringMethod):
    """One measure of each image that has a proposal (tag ``original``) and a label (tag ``final``), kept in its info.

    The request may name other tags, ``y_pred`` and ``y``. An image whose files have not changed since the last time is
    not compared again.

    Args:
        models: served models by name.
    """

    measure: str
    text: str

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        super().__init__(f"{self.text} of each class, between the model's proposal and the submitted label")
        self.models = models

    def __call__(self, request: dict[str, Any], datastore: FolderStore) -> dict[str, dict[str, float | None]]:
        """
        Returns:
            the measure by class name, by image.
        """
        tags = (request.get("y_pred", DefaultLabelTag.ORIGINAL.value), request.get("y", DefaultLabelTag.FINAL.value))
        result = {}
        for image_id in datastore.list_images():
            pair = proposal_and_label(datastore, image_id, self.models, *tags)
            if pair is None:
                continue
            of = [*tags, *(info.get("ts") for info in pair.infos)]
            known = datastore.get_image_info(image_id).get(self.measure)
            if not isinstance(known, dict) or known.get("of") != of:
                scores = compare_labels(
                    *pair.files, pair.model.labels, [self.measure], pair.infos[1].get("labelled_slices")
                )
                known = {"by_class": scores[self.measure], "of": of}
                datastore.update_image_info(image_id, {self.measure: known})
            result[image_id] = known["by_class"]
        return result


class DiceScore(_ProposalScore):
    measure, text = "dice", "Dice"


class HausdorffScore(_ProposalScore):
    measure, text = "hd95", "HD95 in mm"
