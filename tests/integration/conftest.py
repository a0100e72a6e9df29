from pathlib import Path

import pytest

from medsaga.data import write_decathlon_phantoms


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """12 generated volumes in the layout of MSD Task04_Hippocampus."""
    return write_decathlon_phantoms(tmp_path_factory.mktemp("data") / "phantoms", cases=12, shape=(24, 32, 12))
