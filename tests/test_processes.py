from __future__ import annotations

import os
import sys

import psutil
import pytest

from medsaga.processes import processes_for

from . import forks
from .waiting import until

PARENT = """
import time
from medsaga.processes import in_processes
for _ in in_processes(time.sleep, [0.01] + [600] * 4, 2):
    print("one is done", flush=True)
"""


def test_processes_end_with_their_parent(tmp_path):
    said = tmp_path / "said"
    process = forks.start([sys.executable, "-W", "ignore", "-c", PARENT], said, tmp_path, dict(os.environ))
    until(lambda: said.is_file() and "one is done" in said.read_text(), 120, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()  # as a user or a cluster's scheduler does
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert alive == []


@pytest.mark.parametrize("size", [0, 2**20])
def test_small_cases_get_all_cores(size):
    if psutil.virtual_memory().available < 2**30 * len(os.sched_getaffinity(0)):
        pytest.skip("This machine has less than 1 GiB of free memory for each core.")
    assert processes_for(size) == len(os.sched_getaffinity(0))


def test_cases_that_fill_the_memory_are_read_one_by_one():
    assert processes_for(psutil.virtual_memory().total) == 1
