"""The command that shows whether the model helps."""

import json
import sys

import numpy as np
import pytest
from monailabel_app.scores import main, read_scores, versions
from PIL import Image

from .. import forks
from ..integration.bundles import ROOT

OLD, NEW = "model.pt@1762000000000000000", "model.pt@1763000000000000000"  # 2025-11-01 12:26, 2025-11-13 02:13


def line(day, image, version, anterior, posterior=None, **other):
    return {
        "time": f"2026-11-{day:02d}T10:00:00+00:00",
        "image": image,
        "model": "hippocampus",
        "model_version": version,
        "annotator": "ann",
        "seen": False,
        "dice": {"anterior": anterior, "posterior": posterior},
        "hd95": {"anterior": 10 * (1 - anterior), "posterior": None},
        **other,
    }


@pytest.fixture
def studies(tmp_path):
    lines = [
        line(3, "case_3", NEW, 0.9, 0.7),
        line(1, "case_1", OLD, 0.5),
        line(2, "case_2", OLD, 0.6, 0.4),
        line(4, "case_1", NEW, 1.0, 1.0, seen=True),
        line(5, "scan", OLD, 0.25, model="other"),
    ]
    (tmp_path / ".medsaga").mkdir()
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (tmp_path / ".medsaga" / "scores.jsonl").write_text(text + '{"time": "2026-11-0')
    return tmp_path


def test_lines_in_order_without_the_damaged_one(studies, capsys):
    lines = read_scores(studies)
    assert [entry["image"] for entry in lines] == ["case_1", "case_2", "case_3", "case_1", "scan"]
    assert "line 6 is damaged" in capsys.readouterr().err
    assert [name for name, _ in versions(lines)] == ["2025-11-01 12:26", "2025-11-13 02:13"]


def test_table_and_picture(studies, tmp_path, capsys):
    picture = tmp_path / "scores.png"
    assert main([str(studies), "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    rows = [row.split() for row in printed.splitlines()]
    # means over images of the means over classes that have a value: (0.5 + (0.6 + 0.4) / 2) / 2; the seen one not
    assert ["2025-11-01", "12:26", "2", "0.500", "4.5"] in rows
    assert ["2025-11-13", "02:13", "1", "0.800", "1.0"] in rows
    assert "2026-11-02 10:00:00" in printed
    assert sum(row[-1:] == ["seen"] for row in rows) == 1
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    assert drawn.shape[0] > 300
    assert drawn.std() > 5


def test_without_scores_it_says_what_makes_them(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "No scores" in capsys.readouterr().err


def test_as_a_command(studies):
    words = [sys.executable, "-m", "monailabel_app.scores", str(studies)]
    done = forks.run(words, ROOT)
    assert done.returncode == 0, done.stderr
    assert "case_3" in done.stdout
