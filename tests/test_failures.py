from __future__ import annotations

import csv
import errno

import pytest

from medsaga.failures import Failure, failure_of, listed, nothing_can_be_written, write_failures

IMAGE, LABEL = "data/images/a.nii.gz", "data/labels/a.nii.gz"


def wrapped(error):
    """As MONAI does with what a transform raises."""
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("applying transform <Some object>") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "file", "cause"),
    [
        (ValueError(f"{IMAGE}: it is empty."), IMAGE, "it is empty."),
        (ValueError(f"{LABEL}: of shape 3, but its image {IMAGE} 4."), LABEL, f"of shape 3, but its image {IMAGE} 4."),
        (
            RuntimeError("several\n  lines\n\nof text"),
            IMAGE,
            f"cannot be read, or its label {LABEL}: several lines of text",
        ),
        (KeyError("pixels"), IMAGE, f"cannot be read, or its label {LABEL}: KeyError: 'pixels'"),
        (AssertionError(), IMAGE, f"cannot be read, or its label {LABEL}: AssertionError"),
        (
            RuntimeError("what is wrong\n" + "a trace\n" * 100),
            IMAGE,
            f"cannot be read, or its label {LABEL}: what is wrong",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", LABEL), LABEL, f"[Errno 2] No such file: '{LABEL}'"),
    ],
)
def test_a_failure_names_the_file_at_fault_and_has_one_line(error, file, cause):
    assert failure_of(wrapped(error), [IMAGE, LABEL], "cannot be read") == Failure(file, cause)


def test_the_longer_of_two_names_that_begin_alike_is_meant():
    error = ValueError("data/series/label.nii.gz: it is empty.")
    assert failure_of(error, ["data/series", "data/series/label.nii.gz"], "cannot be read").file.endswith(
        "label.nii.gz"
    )


def test_a_full_disk_is_known_by_its_number_however_deep(tmp_path):
    assert nothing_can_be_written(wrapped(OSError(errno.ENOSPC, "No space left on device")))
    assert not nothing_can_be_written(wrapped(OSError(errno.ENOENT, "No such file")))


def test_the_file_has_all_failures_whatever_their_letters(tmp_path):
    failures = [Failure(f"ärzte, neu/{i}.nii", 'a "cause", with\tcommas') for i in range(3)]
    assert listed(failures, 2).splitlines()[2:] == ["... and 1 more"]
    path = tmp_path / "new" / "errors.csv"
    write_failures(path, failures)
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "cause"]
    assert [Failure(*row) for row in rows] == failures
    write_failures(path, [])
    assert list(path.parent.iterdir()) == []
