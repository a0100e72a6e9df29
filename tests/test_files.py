"""Files that are written whole, and what is left of those that were not."""

import os
import time

import pytest

from medsaga.files import remove_older, replacing


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fill():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]


def test_only_what_is_old_is_removed(tmp_path):
    for name in ("old.nii.gz", "new.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "1.dcm").write_bytes(b"x")
    for name in ("old.nii.gz", "old"):
        os.utime(tmp_path / name, (time.time() - 3700,) * 2)
    assert remove_older(tmp_path, 3600) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["new.nii.gz"]
