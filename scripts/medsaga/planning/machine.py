"""The memory that this machine offers, and the memory that a training takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsaga.bundle.template import bundle_files
from medsaga.memory.fit import available, parse_memory
from medsaga.memory.predict import predict
from medsaga.memory.setup import Setup

__all__ = ["Machine", "peak_of", "this_machine"]

_CPU_SHARE = 0.5  # of a computer's memory: the rest is for data, libraries and other work
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


@dataclass(frozen=True)
class Machine:
    """What there is to train on.

    Attributes:
        gpu: whether there is one, or its memory was named.
        memory: bytes for a training's tensors.
        words: what to call it.
    """

    gpu: bool
    memory: float
    words: str


def this_machine(memory: str | None = None) -> Machine:
    """The machine at hand.

    Args:
        memory: of the GPU to plan for, such as ``8GB``, which need not be in this machine; None for this machine.

    Raises:
        ValueError: ``memory`` is no size.
    """
    if memory is not None:
        return Machine(True, available(parse_memory(memory)), f"a GPU of {memory}")
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        return Machine(True, available(total), f"this machine's GPU ({total / 1e9:.0f} GB)")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _LIMIT.is_file() and (limit := _LIMIT.read_text().strip()).isdigit():
        total = min(total, int(limit))
    return Machine(False, _CPU_SHARE * total, f"this machine without GPU ({total / 1e9:.0f} GB)")


def peak_of(base: Path, machine: Machine) -> Callable[[dict[str, Any]], int]:
    """A function that predicts the memory of a training step.

    Args:
        base: folder of the template of bundles.
        machine: to train on.

    Returns:
        a function from the fields of ``dataset.json`` to bytes.
    """

    def peak(dataset: dict[str, Any]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "configs" / "train.json"
            config.parent.mkdir()
            config.write_text(bundle_files(dataset, base)["configs/train.json"], encoding="utf-8")
            setup = Setup(folder, (), {"bundle_root": folder})
            return sum(predict(setup, "cuda" if machine.gpu else "cpu").values())

    return peak
