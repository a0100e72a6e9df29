from __future__ import annotations

import subprocess
import sys

import pytest

START = "from medsaga.bundle import show_root_cause; show_root_cause()\n"


def stderr(code):
    result = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()


WRAPPED = """
try:
    try:
        raise FileNotFoundError("data/x.nii.gz is missing")
    except FileNotFoundError as first:
        raise ValueError("applying transform") from first
except ValueError as second:
    raise RuntimeError("Failed to evaluate") from second
"""


def test_report_ends_with_the_first_cause():
    lines = stderr(WRAPPED)
    assert lines[-1] == "The cause: FileNotFoundError: data/x.nii.gz is missing"
    # the whole traceback is there, too
    assert "RuntimeError: Failed to evaluate" in lines
    assert "ValueError: applying transform" in lines


@pytest.mark.parametrize(
    "code", ["raise ValueError('plain')", "try:\n 1 / 0\nexcept Exception:\n raise ValueError('plain')"]
)
def test_error_without_a_cause_is_reported_as_python_does(code):
    assert stderr(code)[-1] == "ValueError: plain"


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
    assert stderr(code)[-1] == "The cause: ValueError: Cannot resume from last.pt"
