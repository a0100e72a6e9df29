import json
import sys
from pathlib import Path

import pytest

from .. import forks

ROOT = Path(__file__).parents[2]


def _read_damaged(folder: Path, formats: str, count: int) -> dict:
    """In a process of its own, which a C library may take down and whose memory is measured."""
    done = forks.run([sys.executable, "-m", "tests.reading.malformed", str(folder), formats, str(count)], ROOT, 600)
    current = folder / "current.txt"
    at = current.read_text() if current.is_file() else "the good files"
    assert done.returncode == 0, f"ended with {done.returncode} at {at}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("formats, count", [("nii,nii.gz,nrrd,mha,mhd,png,jpg,bmp,tif", 500), ("dcm", 200)])
def test_damaged_files_are_read_or_refused_by_name(tmp_path, formats, count):
    result = _read_damaged(tmp_path, formats, count)
    assert result["wrong"] == []
    assert result["read"] + result["refused"] == count
    assert min(result["read"], result["refused"]) > count / 20  # there is damage of both kinds
    assert result["peak"] < 10**9
