"""The parts of the GPU check, on a CPU at toy sizes."""

from __future__ import annotations

import json
import time

import pytest

from medsaga.experiments import gpu


@pytest.fixture
def run(tmp_path):
    return gpu.Run("cpu", time.monotonic() + 600, tmp_path, tmp_path / "gpu.md")


def test_a_step_of_each_method_is_predicted_measured_and_divided_by_samed(run, monkeypatch):
    monkeypatch.setitem(gpu._SIZES, "cpu", [("vit_test", 64, 2, ("default", "samed"), ("fp32",))])
    assert list(gpu.steps(run)) == ["vit_test 64 px, samed fp32", "vit_test 64 px, default fp32"]
    rows = [line.split(" | ") for line in run.page.read_text().splitlines() if line.startswith(("| MedSAGa", "| (b)"))]
    assert [row[5] for row in rows] == ["1.00"] * 2  # measured ÷ predicted
    assert rows[0][-2:] == ["1.00", "1.00 |"]
    assert json.loads(run.page.with_suffix(".json").read_text()) == run.sections


def test_kernels_and_clicks_are_written_and_what_is_there_stays(run):
    for part in (gpu.kernels, gpu.clicks):
        list(part(run))
    page = run.page.read_text()
    assert "without a GPU" in page and "scaled_dot_product" in page and "clicks a second" in page


def test_without_time_nothing_more_is_begun_and_the_page_says_so(run):
    run.end = time.monotonic()
    assert list(gpu.steps(run)) == []
    assert "Out of time before (b) SAMed" in run.page.read_text()
