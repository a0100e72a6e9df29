"""Inputs whose truth is known: the bundle's command and the app find the mask in its place, or both refuse by name."""

from __future__ import annotations

import re

import numpy as np
import pytest

from .segmented import by_app, by_bundle
from .table import PICTURES, VOLUMES

HALF_A_VOXEL = (0.5, 0.5, 1.0)  # mm

# where one image is asked for these are refused, but a bundle segments all that it finds in a folder
FOUND_BY_BUNDLE = {"two series in a folder", "patient/study/series", "two X-rays in a series"}


@pytest.mark.parametrize("way", [by_bundle, by_app])
@pytest.mark.parametrize("row", VOLUMES, ids=lambda row: row.name)
def test_a_volume_is_segmented_in_its_place_or_refused_by_name(row, way, tmp_path):
    (tmp_path / "input").mkdir()
    path = row.make(tmp_path / "input")
    outcome = way(path, tmp_path / "work")
    if row.refused is not None and not (way is by_bundle and row.name in FOUND_BY_BUNDLE):
        assert outcome.refused is not None, outcome
        assert re.search(row.refused, outcome.refused), outcome
        assert path.name in outcome.refused or "fetched" in outcome.refused
        return
    assert outcome.refused is None, outcome
    assert np.linalg.norm(np.subtract(outcome.centre, row.centre)) <= np.linalg.norm(HALF_A_VOXEL), outcome
    assert outcome.size == pytest.approx(row.ml, rel=0.15), outcome


@pytest.mark.parametrize("way", [by_bundle, by_app])
@pytest.mark.parametrize("row", PICTURES, ids=lambda row: row.name)
def test_a_picture_is_segmented_in_its_place_or_refused_by_name(row, way, tmp_path):
    (tmp_path / "input").mkdir()
    path = row.make(tmp_path / "input")
    outcome = way(path, tmp_path / "work", picture=True)
    if row.refused is not None and not (way is by_bundle and row.name in FOUND_BY_BUNDLE):
        assert outcome.refused is not None, outcome
        assert re.search(row.refused, outcome.refused), outcome
        return
    assert outcome.refused is None, outcome
    assert outcome.centre == pytest.approx(row.centre, abs=0.5), outcome
    assert outcome.size == pytest.approx(row.area, rel=0.15), outcome
