"""OHIF, as MONAI Label ships it, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from ..bundles import ROOT
from .geometry import at_series, stored_segs, write_label
from .series import RAS_TO_LPS
from .services import SERVER
from .test_server import VOLUME, submit, training_data

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("clean")]


@pytest.fixture(scope="module")
def browser() -> dict[str, str]:
    """Where the browser and the module that steers it are."""
    modules = Path(os.environ.get("MEDSAGA_PUPPETEER", ROOT / ".venv" / "ohif"))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not (chromium and shutil.which("node") and (modules / "node_modules" / "puppeteer-core").is_dir()):
        pytest.skip("chromium, node or puppeteer-core is not installed: .ci/install-viewers installs them")
    return {"modules": str(modules), "chromium": chromium}


def test_an_annotator_segments_corrects_submits_and_trains(browser, server, cases, tmp_path):
    case = cases["mr"]
    for name in ("mr2", "mr3"):  # what can be trained on
        label = write_label(tmp_path / f"{name}.nii.gz", cases[name].label, cases[name].series)
        assert submit(cases[name].series.uid, label, VOLUME).ok
    folder = Path(os.environ.get("MEDSAGA_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    inside, outside = click_points(case, value=2)
    task = {"study": case.series.study, "folder": str(folder), "label": "posterior", "server": SERVER, **browser}
    (tmp_path / "task.json").write_text(json.dumps({**task, "inside": inside, "outside": outside}))
    script = Path(__file__).with_name("ohif.mjs")
    done = subprocess.run(
        ["node", str(script), str(tmp_path / "task.json")], capture_output=True, text=True, timeout=400
    )
    assert done.stdout, done.stderr
    seen = json.loads(done.stdout)
    assert "failed" not in seen, f"{seen['failed']}; screenshots in {folder}"

    assert set(seen["patients"]) == {f"PHANTOM-{name}" for name in cases}
    assert {"hippocampus", "hippocampus_prompt"} <= set(seen["models"])
    # nothing is drawn before, the classes are drawn after; OHIF's voxels lie where the phantom was drawn
    assert seen["before"]["voxels"] == {} and not any(seen["before"]["coloured"])
    assert set(seen["automatic"]["voxels"]) == {"anterior", "posterior"}
    assert sum(drawn > 100 for drawn in seen["automatic"]["coloured"]) >= 2, "views with a segmentation"
    automatic = in_series(seen["automatic"]["volume"], case)
    assert dice(automatic > 0, case.label > 0) > 0.7
    # a click changes the label that it is meant for, and no other
    prompted = in_series(seen["prompted"]["volume"], case)
    assert np.any(prompted != automatic)
    np.testing.assert_array_equal(prompted == 1, automatic == 1)
    place = np.linalg.inv(RAS_TO_LPS @ case.series.affine) @ [*inside, 1]
    assert prompted[tuple(np.rint(place[:3]).astype(int))] == 2
    assert seen["refused"] == 404, "and the page has shown the reason"
    # what was drawn is what was submitted
    (seg,) = stored_segs(case.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["anterior", "posterior"]
    submitted = at_series(training_data()[case.series.uid], case.series)
    np.testing.assert_array_equal(submitted, in_series(seen["corrected"]["volume"], case))

    assert seen["nextStudy"] in {c.series.study for n, c in cases.items() if n not in ("mr", "mr2", "mr3")}
    for answer in ("infer", "prompt", "prompt2", "submit", "next", "train", "stop"):
        assert seen[answer] == 200, answer
    assert seen["errors"] == []


def click_points(case, value: int) -> tuple[list[float], list[float]]:
    """A point beside a structure, which the model would leave out, and one far off in the same slice (mm, L P S)."""
    k = int((case.label == value).sum((0, 1)).argmax())
    label = case.label[:, :, k]
    to_it, to_others = (distance_transform_edt(m) for m in (label != value, (label == 0) | (label == value)))
    beside = np.argwhere((to_it > 3) & (to_it < 5))
    point = beside[to_others[tuple(beside.T)].argmax()]  # away from the other structure
    lps = RAS_TO_LPS @ case.series.affine
    return tuple((lps @ [*voxel, k, 1])[:3].tolist() for voxel in (point, (4, 4)))


def in_series(volume: dict, case) -> np.ndarray:
    """OHIF's label volume on the series' voxels, with the numbers of the classes."""
    numbers = {"anterior": 1, "posterior": 2}
    shape = volume["dimensions"]
    table = np.zeros(256, int)
    for value, name in volume["names"].items():
        table[int(value)] = numbers.get(name, 0)
    values = table[np.array(volume["values"])].reshape(shape, order="F")
    affine = np.eye(4)
    affine[:3, :3] = np.array(volume["direction"]).reshape(3, 3).T * np.array(volume["spacing"])
    affine[:3, 3] = volume["origin"]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    result = np.zeros(case.series.voxels.shape, int)
    result[tuple(case.series.world(RAS_TO_LPS @ affine, index).T)] = values.ravel()
    return result


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())
