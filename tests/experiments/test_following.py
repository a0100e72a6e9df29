"""Objects followed through a volume: where the annotator's boxes are, and the command."""

import json

import numpy as np
import pytest

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import following
from medsaga.experiments.following import boxes_on

from ..integration.bundles import ROOT


def test_boxes_lie_around_the_object():
    truth = np.zeros((20, 30, 12), dtype=bool)
    truth[5:9, 10:20, 2:11] = True
    truth[3:9, 10:20, 6] = True
    assert {i: p.box for i, p in boxes_on(truth, "1 slice").items()} == {6: (3, 10, 8, 19)}
    assert {index: prompt.box for index, prompt in boxes_on(truth, "2").items()} == dict.fromkeys(
        (4, 8), (5, 10, 8, 19)
    )
    assert list(boxes_on(truth, "5")) == [2, 4, 6, 8, 10]
    assert {i: p.box for i, p in boxes_on(truth, "3-D box").items()} == dict.fromkeys(range(2, 11), (3, 10, 8, 19))


def test_the_command_prints_a_row_for_each_object(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = write_decathlon_phantoms(tmp_path, cases=1, shape=(24, 32, 8))
    (image,) = (data / "imagesTr").glob("*.nii.gz")
    words = ["--image", str(image), "--label", str(data / "labelsTr" / image.name), "--bundle", "hippocampus"]
    words += ["--output", str(tmp_path / "following.json"), "--objects", "1=anterior"]
    following.main(words)
    printed = capsys.readouterr().out
    assert "| | 1 slice | 2 | 3 | 5 | 3-D box |" in printed and "| anterior | 0." in printed
    content = json.loads((tmp_path / "following.json").read_text())["objects"]["anterior"]
    assert f"{content['5'][0]:.3f} ({content['5'][1]}, {content['5'][2]})" in printed
    assert content["5"][0] > 0.5, "boxes on most slices of a phantom"
    with pytest.raises(ValueError, match="no voxel of 9"):
        following.main([*words[:-1], "9=none"])
