"""Damaged files among good ones: each is named, and no good one is left undone, by check, evaluation and inference.

``MEDSAGA_MALFORMED=1000 python -m pytest tests/integration/test_malformed_batches.py`` tries more of them.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, ScaleIntensityRangePercentilesd
from PIL import Image

from medsaga.data.slice_cache import prepare_cases
from medsaga.reading import open_image
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged
from tests.reading.malformed import damaged, good_files

from .bundles import fails

pytestmark = pytest.mark.integration

COUNT = int(os.environ.get("MEDSAGA_MALFORMED", "120"))
GOOD = 6
STAND_IN = {"network_def": {"_target_": "tests.reading.segmented.Bright"}, "initialize": [], "image_size": 48}


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> list[dict[str, str]]:
    """Cases with image, label and name; the good ones, called ``good``, are spread among the damaged ones."""
    root = tmp_path_factory.mktemp("malformed")
    sources = root / "sources"
    sources.mkdir()
    files = good_files(sources)
    kinds = [kind for kind in files if kind != "mhd"]  # its voxels are in a file beside it
    cases = []
    for index in range(COUNT + GOOD):
        good = index % (COUNT // GOOD) == COUNT // GOOD // 2
        kind = "nii.gz" if good else kinds[index % len(kinds)]
        suffix, raw = files[kind]
        folder = root / f"{'good' if good else 'bad'}{index:04}"
        folder.mkdir()
        image = folder / f"image{suffix}"
        image.write_bytes(raw)
        grid = open_image(image).grid
        label = folder / ("label.nii.gz" if grid.placed else "label.png")
        if grid.placed:
            nib.save(nib.Nifti1Image(np.ones(grid.shape, np.uint8), grid.affine), label)
        else:
            Image.fromarray(np.ones(grid.shape[::-1], np.uint8)).save(label)
        image.write_bytes(raw if good else damaged(kind, raw, np.random.default_rng(index)))
        cases.append({"image": str(image), "label": str(label), "patient": folder.name, "name": folder.name})
    assert sum(case["name"].startswith("good") for case in cases) >= GOOD
    return cases


def named(errors: Path) -> set[str]:
    """Cases in ``errors.csv``."""
    with errors.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["cause"].strip()
        assert "\n" not in row["cause"]
    return {Path(row["file"]).parent.name for row in rows}


def check(done: set[str], failed: set[str], cases: list[dict[str, str]]) -> None:
    names = {case["name"] for case in cases}
    assert done | failed == names
    assert not done & failed
    assert {name for name in names if name.startswith("good")} <= done
    assert len(failed) > len(names) / 5


def test_inference_segments_the_good_ones_and_names_the_others(batch, tmp_path):
    data = [{"image": case["image"], "name": case["name"]} for case in batch]
    paths = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "masks")}
    message = fails("evaluating", "hippocampus", "inference", **STAND_IN, **{"dataset#data": data}, **paths)
    assert f"of {len(batch)} cases failed" in message
    masks = {path.name.removesuffix("_seg.nii.gz") for path in (tmp_path / "masks").glob("*_seg.nii.gz")}
    check(masks, named(tmp_path / "masks" / "errors.csv"), batch)


def test_evaluation_scores_the_good_ones_and_names_the_others(batch, tmp_path):
    parts = {"train": [], "validation": [], "test": batch}
    paths = {name: str(tmp_path / name) for name in ("dataset_dir", "output_dir", "cache_dir")}
    paths["evaluation_dir"] = str(tmp_path / "output" / "evaluation")
    notes = {"validate#handlers#0#notes": []}
    message = fails("evaluating", "hippocampus", "train", "evaluate", **STAND_IN, parts=parts, **notes, **paths)
    assert f"of {len(batch)} cases failed" in message
    with (tmp_path / "output" / "evaluation" / "metrics.csv").open(newline="") as file:
        scored = {row["case"] for row in csv.DictReader(file)}
    check(scored, named(tmp_path / "output" / "evaluation" / "errors.csv"), batch)


def test_the_check_before_training_names_all_that_cannot_be_used(batch, tmp_path):
    keys = ["image", "label"]
    preprocessing = Compose(
        [
            ReadImaged(keys),
            OrientSlicesd(keys),
            CheckCased(3),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True),
        ]
    )
    half = len(batch) // 2
    _, failures = prepare_cases(batch[:half], batch[half:], preprocessing, 3, tmp_path / "cache", 0)
    failed = {Path(failure.file).parent.name for failure in failures}
    check({case["name"] for case in batch} - failed, failed, batch)
