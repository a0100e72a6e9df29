"""OHIF, as MONAI Label ships it, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
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


def test_an_annotator_segments_corrects_submits_and_trains(browser, server, cases, same_weights, tmp_path):
    case = cases["mr"]
    for name in ("mr2", "mr3"):  # what can be trained on
        label = write_label(tmp_path / f"{name}.nii.gz", cases[name].label, cases[name].series)
        assert submit(cases[name].series.uid, label, VOLUME).ok
    parts = ["studies", "connected", "refused", "automatic", "points", "undone", "box", "boxAndPoint", "scribble"]
    parts += ["failing", "propagated", "automaticAgain", "submitted", "training", "next"]
    seen = annotate(parts, case, SERVER, browser, tmp_path)
    notes = {name: part for name, part in seen.items() if isinstance(part, dict) and "volume" in part}
    drawn = {name: in_series(part["volume"], case) for name, part in notes.items()}

    assert set(seen["patients"]) == {f"PHANTOM-{name}" for name in cases}
    assert {"hippocampus", "hippocampus_prompt"} <= set(seen["models"])
    # nothing is drawn before, the classes are drawn after; OHIF's voxels lie where the phantom was drawn
    assert seen["before"]["voxels"] == {} and not any(seen["before"]["coloured"])
    assert set(seen["automatic"]["voxels"]) == {"anterior", "posterior"}
    assert sum(pixels > 100 for pixels in seen["automatic"]["coloured"]) >= 2, "views with a segmentation"
    automatic = drawn["automatic"]
    assert dice(automatic > 0, case.label > 0) > 0.7
    # a click changes the label that it is meant for, on its slice
    marks = marked(case, value=2)
    assert np.any(drawn["prompted"] != automatic)
    k = marks["slice"]
    np.testing.assert_array_equal(np.delete(drawn["prompted"], k, axis=2), np.delete(automatic, k, axis=2))
    assert drawn["prompted"][marks["inside"]] == 2
    # what is taken back leaves what was there before, bit by bit, also the automatic mask
    for before, after in {"prompted": "undone", "automatic": "undone_all", "boxed": "uncarved"}.items():
        assert seen[before]["volume"] == seen[after]["volume"], after
    # a box and a point make one mask, within the box
    assert drawn["boxed"][marks["middle"]] == 2 and drawn["carved"][marks["middle"]] != 2
    assert np.all(np.argwhere(drawn["carved"][:, :, k] == 2) >= marks["low"])
    assert np.all(np.argwhere(drawn["carved"][:, :, k] == 2) <= marks["high"])
    assert all(drawn["scribbled"][voxel] == 2 for voxel in marks["line"])
    # what fails says why, and changes nothing
    assert seen["failed_prompts"]["volume"] == seen["scribbled"]["volume"]
    for reason in ("There is no model 'none'", "give at least one positive point, or a box", "posterior is finished"):
        assert any(f"MONAI Label: {reason}" in text or reason in text for text in seen["console"]), reason
    # the organ stays chosen and its prompts stay set when the model is changed
    assert seen["chosen"] == ["posterior"]
    through = [int((drawn[name] == 2).any((0, 1)).sum()) for name in ("scribbled", "propagated")]
    assert through[1] > 1
    np.testing.assert_array_equal(drawn["propagated"][:, :, k] == 2, drawn["scribbled"][:, :, k] == 2)
    assert seen["unpropagated"]["volume"] == seen["scribbled"]["volume"]
    # an automatic mask leaves what was prompted, and the view goes where it is least sure
    np.testing.assert_array_equal(drawn["automatic_again"] == 2, drawn["scribbled"] == 2)
    assert abs(seen["shown"] - seen["leastSure"]) < 0.5
    # what was drawn is what was submitted
    (seg,) = stored_segs(case.series.study)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["anterior", "posterior"]
    submitted = at_series(training_data()[case.series.uid], case.series)
    np.testing.assert_array_equal(submitted, drawn["submitted"])

    assert seen["nextStudy"] in {c.series.study for n, c in cases.items() if n not in ("mr", "mr2", "mr3")}
    failing = {"refused": 404, "negative": 422}
    assert seen["answers"] == {name: failing.get(name, 200) for name in seen["answers"]}


def test_prompts_are_for_the_slice_of_the_view_in_which_they_are_set(browser, server, cases, tmp_path):
    case = cases["ct"]  # whose slices run the other way
    parts = ["connected", "slices", "box", "sagittal", "submittedSlices"]
    seen = annotate(parts, case, SERVER, browser, tmp_path)
    marks = marked(case, value=2)
    boxed, prompted = (in_series(seen[name]["volume"], case) == 2 for name in ("boxed", "sagittal"))
    voxels = np.argwhere(boxed)
    assert len(voxels) and np.all(voxels[:, 2] == marks["slice"])
    assert np.all(voxels[:, :2] >= marks["low"]) and np.all(voxels[:, :2] <= marks["high"])
    assert prompted[marks["middle"]]
    i = marks["middle"][0]
    assert prompted[i].any(axis=0).sum() > 1, "a slice across the columns"
    np.testing.assert_array_equal(np.delete(prompted, i, axis=0), np.delete(boxed, i, axis=0))
    # the view went to the slices that the server named; they and the prompted one are what is labelled
    params = {"label": case.series.uid, "tag": "final"}
    info = requests.get(f"{SERVER}/datastore/label/info", params=params, timeout=60).json()
    asked = [round(number) for number in seen["slices"]]
    np.testing.assert_allclose(seen["slices"], asked, atol=0.5)
    volume = seen["boxed"]["volume"]
    values = np.array(volume["values"]).reshape(volume["dimensions"], order="F")
    (slice_of_box,) = np.flatnonzero(values.any((0, 1)))
    assert asked[0] < asked[1]
    assert info["labelled_slices"] == sorted({*asked, int(slice_of_box)})
    assert seen["answers"]["submitSlices"] == 200


def annotate(parts: list[str], case, server: str, browser: dict[str, str], folder: Path) -> dict:
    """What is seen in the browser while an annotator does these parts of ohif.mjs."""
    shots = Path(os.environ.get("MEDSAGA_SCREENSHOTS", folder)) / case.series.files[0].parent.name
    shots.mkdir(parents=True, exist_ok=True)
    lps = RAS_TO_LPS @ case.series.affine
    marks = marked(case, value=2)
    k = marks["slice"]

    def places(*voxels) -> list[list[float]]:
        return [(lps @ [*voxel[:2], k, 1])[:3].tolist() for voxel in voxels]

    task = {
        **{name: places(marks[name])[0] for name in ("inside", "outside", "middle")},
        "box": places(marks["low"], marks["high"]),
        "line": places(marks["line"][0], marks["line"][-1]),
    }
    task |= {"study": case.series.study, "folder": str(shots), "label": "posterior", "server": server, "parts": parts}
    (folder / "task.json").write_text(json.dumps({**task, **browser}))
    script = Path(__file__).with_name("ohif.mjs")
    done = subprocess.run(["node", str(script), str(folder / "task.json")], capture_output=True, text=True, timeout=540)
    assert done.stdout, done.stderr
    seen = json.loads(done.stdout)
    assert "failed" not in seen, f"{seen['failed']}; screenshots in {shots}"
    assert seen["errors"] == []
    return seen


def marked(case, value: int) -> dict[str, Any]:
    """Voxels of a structure's largest slice, to be prompted: ``inside``, beside the structure, which the model would
    leave out; ``outside``, far off; ``low`` and ``high`` (column, row), a box around it; its ``middle``; a ``line``.
    """
    k = int((case.label == value).sum((0, 1)).argmax())
    label = case.label[:, :, k]
    to_it, to_others = (distance_transform_edt(m) for m in (label != value, (label == 0) | (label == value)))
    beside = np.argwhere((to_it > 3) & (to_it < 5))
    own = np.argwhere(label == value)
    depth = distance_transform_edt(label == value)
    middle = np.unravel_index(depth.argmax(), depth.shape)
    column = own[own[:, 0] == middle[0]]
    away = beside[to_others[tuple(beside.T)].argmax()]  # from the other structure
    found = {"inside": away, "outside": (4, 4), "middle": middle}
    return {
        "slice": k,
        **{name: (*map(int, voxel), k) for name, voxel in found.items()},
        "low": own.min(0) - 2,
        "high": own.max(0) + 2,
        "line": [(*map(int, voxel), k) for voxel in column[2:-2]],
    }


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
