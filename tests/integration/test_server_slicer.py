"""A sequence of prompts as 3D Slicer's panel makes it, through the plugin's own client."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")
pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")

from .server import serve
from .slicer import SlicerPanel
from .slicer_picture import HEIGHT, draw, steps, two_organs

pytestmark = pytest.mark.integration

PROMPT, WHOLE = "hippocampus_prompt", "hippocampus_propagate"


def test_box_point_undo_neighbour_and_automatic_mask(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    file = studies / "two_organs.nii.gz"
    nib.save(two_organs(), file)
    with serve(tmp_path, studies=studies, cases=1) as server:
        panel = SlicerPanel(server.url, "two_organs", file, tmp_path)
        found = list(steps(panel, PROMPT, WHOLE))
        boxed, pointed, undone, beside, through = ([s.get(name) for name in panel.segments] for *_, s in found)
        assert boxed[0].any() and not np.array_equal(boxed[0], pointed[0])
        np.testing.assert_array_equal(undone[0], boxed[0])
        for first, second in (beside, through):
            np.testing.assert_array_equal(first, boxed[0])
            assert second.any() and not (first & second).any()
        assert not np.delete(beside[1], HEIGHT, axis=2).any()
        panel.automatic("hippocampus")
        assert panel.answered["kept"] == ["anterior", "posterior"]
        np.testing.assert_array_equal(panel.segments["anterior"], through[0])
        np.testing.assert_array_equal(panel.segments["posterior"], through[1])
        panel.options["replace"] = True  # a box to check in its table
        panel.automatic("hippocampus")
        assert panel.answered["kept"] == []
        assert not np.array_equal(panel.segments["anterior"], through[0])
    draw(two_organs(), found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
