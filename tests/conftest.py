"""What tests of several rooms share."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch

from .once import once
from .small_disk import mounted

# tests train for seconds; what a first model has to be worth is tested by itself
os.environ.setdefault("MEDSAGA_FIRST_DICE", "0")
# processes that tests start import what users have, and share the cores with the tests beside them
HIDDEN = str(Path(__file__).parent / "hidden")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HIDDEN, os.environ.get("PYTHONPATH")]))
sys.path[:] = [path for path in sys.path if path != HIDDEN]  # xdist's workers are such processes, and compare with it
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_xdist_auto_num_workers():
    """One more than cores, as tests wait for servers and browsers an eighth of the time; a worker grows to 5 GB."""
    return max(1, min((psutil.cpu_count(logical=False) or 1) + 1, int(psutil.virtual_memory().available // 5e9)))


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # arrays as small as the tests' gain nothing from more, and lose much where other work has the cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def components_listed_once():
    """MONAI lists its classes anew for each of the thousands of ``ConfigParser``, 12 ms each."""
    from monai.bundle.config_item import ComponentLocator

    with once(ComponentLocator, "_find_classes_or_functions", lambda _, modules: tuple(modules)):
        yield


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real labelled images, outside the repository."""
    folder = Path(os.environ.get("MEDSAGA_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"No sample data at {folder}; set MEDSAGA_TEST_DATA to its folder.")
    return folder


@pytest.fixture
def mount():
    """Mounts a small file system on a folder, and unmounts it at the end."""
    with ExitStack() as stack:

        def mount(folder: Path, size: str) -> Path:
            if stack.enter_context(mounted(folder, size)) is None:
                pytest.skip("Mounting a small file system needs the right to mount (root).")
            return folder

        yield mount
