"""3D Slicer's panel without Slicer: the requests of MONAI Label 0.8.5's plugin, and what it does with the masks.

After ``onClickDeepgrow`` and ``updateSegmentationMask`` of ``MONAILabel.py``; the client is the plugin's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from monailabel.client.client import MONAILabelClient

__all__ = ["SlicerPanel"]

Points = Sequence[Sequence[int]]


class SlicerPanel:
    """An image that is annotated, with its segments.

    Args:
        url: of the server.
        image: id.
        file: of the image.
        work: folder for masks.

    Attributes:
        segments: bool (W, H, D) by name.
        options: that the user has changed in the panel's table.
        answered: parameters of the last answer.
    """

    def __init__(self, url: str, image: str, file: Path, work: Path) -> None:
        self.client = MONAILabelClient(url, str(work), "slicer")
        self.models = self.client.info()["models"]
        self.image = image
        self.shape = nib.load(file).shape
        self.segments: dict[str, np.ndarray] = {}
        self.options: dict[str, Any] = {}
        self.answered: dict[str, Any] = {}

    def prompt(
        self, model: str, segment: str, foreground: Points = (), background: Points = (), roi: Sequence[int] = ()
    ) -> np.ndarray:
        """*SmartEdit* with the points that are set now.

        Returns:
            the segment as it is shown then.
        """
        flat = self.models[model]["dimension"] == 2
        points = [*foreground] or [*background]
        height = points[-1][2] if points else int(roi[5])
        if flat and height:
            foreground = [point for point in foreground if point[2] == height]
            background = [point for point in background if point[2] == height]
        params = {"label": segment, "foreground": [*foreground], "background": [*background]}
        params |= self._options(model)
        if roi:
            params["roi"] = [*roi]
        if flat:
            params["slice"] = height
        mask = self._infer(model, params) > 0
        shown = self.segments.get(segment, np.zeros(self.shape, bool)).copy()
        if flat:
            shown[:, :, height] = False
            shown |= mask
        else:
            shown = mask
        self.segments[segment] = shown
        return shown

    def automatic(self, model: str) -> None:
        """*Auto Segmentation*: all classes of the model are replaced."""
        mask = self._infer(model, self._options(model))
        self.segments |= {name: mask == number for name, number in self.answered["label_names"].items()}

    def _options(self, model: str) -> dict[str, Any]:
        config = self.models[model]["config"]
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()} | self.options

    def _infer(self, model: str, params: dict[str, Any]) -> np.ndarray:
        params = {**params, "result_extension": ".nrrd", "result_dtype": "uint8"}
        file, self.answered = self.client.infer(model, self.image, params)
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).transpose()
