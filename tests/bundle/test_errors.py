from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

START = "from medsaga.bundle import show_root_cause; show_root_cause({})\n"


def report(code, traceback=False, **environment):
    """All that a run prints, as it stands in a log."""
    result = subprocess.run(
        [sys.executable, "-c", START.format(traceback) + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    assert result.returncode == 1
    return result.stdout.strip().splitlines()


WRAPPED = """
try:
    try:
        raise FileNotFoundError("data/x.nii.gz is missing")
    except FileNotFoundError as first:
        raise ValueError("applying transform") from first
except ValueError as second:
    raise RuntimeError("Failed to evaluate") from second
"""
CAUSE = "FileNotFoundError: data/x.nii.gz is missing"


def test_report_is_the_first_cause_and_how_to_see_more():
    lines = report(WRAPPED)
    assert lines[-1] == CAUSE
    assert "--traceback true" in lines[0] and not any("Traceback" in line or "File " in line for line in lines)


def test_traceback_is_shown_when_asked_for_and_the_cause_is_still_last():
    lines = report(WRAPPED, traceback=True)
    assert lines[-1] == CAUSE
    assert "RuntimeError: Failed to evaluate" in lines and "ValueError: applying transform" in lines
    assert lines[0] == "Traceback (most recent call last):"


@pytest.mark.parametrize("traceback", [False, True])
def test_nothing_buries_the_last_line(traceback):
    code = """
import atexit, warnings
atexit.register(lambda: warnings.warn("resources leaked"))
class Late:
    def __del__(self):
        warnings.warn("not closed")
late = Late()
print("a table that waits in the buffer of a file")
"""
    lines = report(code + WRAPPED, traceback=traceback)
    assert lines[-1] == CAUSE and "a table that waits in the buffer of a file" in lines


@pytest.mark.parametrize(
    "code", ["raise ValueError('plain')", "try:\n 1 / 0\nexcept Exception:\n raise ValueError('plain')"]
)
def test_error_without_a_cause_is_reported_by_itself(code):
    assert report(code)[-1] == "ValueError: plain"
    assert report(code, traceback=True)[-1] == "ValueError: plain"


def test_error_that_explains_its_own_cause_is_the_one_reported():
    code = """
try:
    try:
        1 / 0
    except ZeroDivisionError as first:
        raise ValueError("Cannot resume from last.pt") from first
except ValueError as second:
    raise RuntimeError("Failed to evaluate") from second
"""
    assert report(code)[-1] == "ValueError: Cannot resume from last.pt"


def test_of_cases_that_failed_the_list_is_last():
    code = "from medsaga.failures import CasesFailedError\nraise CasesFailedError('2 of 3 failed:\\na: cut\\nb: cut')"
    assert report(code) == ["2 of 3 failed:", "a: cut", "b: cut"]


def test_torchrun_is_told_the_cause(tmp_path):
    report(WRAPPED, TORCHELASTIC_ERROR_FILE=str(tmp_path / "error.json"))
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    more = message["extraInfo"]
    # the two places that torchrun's report reads
    assert message["message"] == more["py_callstack"] == CAUSE and int(more["timestamp"])
