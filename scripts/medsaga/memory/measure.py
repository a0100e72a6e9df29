"""The memory and time of a training step, measured."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .setup import Setup
from .training import Training

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """What a training step takes.

    Args:
        split: the accounted peak by category, in bytes.
        process: what the machine gave for it, in bytes: on CUDA the allocator's peak, else the growth of the process's
            resident memory; None where neither is known (no Linux).
        seconds: time of one step.
    """

    split: dict[str, int]
    process: int | None
    seconds: float


def measure(setup: Setup) -> Measurement:
    """Measure training steps on the config's device.

    Call it in a fresh process, as memory that a process has used and kept is not seen to be used again.

    Args:
        setup: what the bundle trains with.

    Returns:
        The peak over the first two steps, and the time of the shorter of two more, whose memory is not accounted. The
        shorter one is taken, because other work on the machine only ever adds time.
    """
    before = _start_resident_peak()
    training = Training(setup.parser())
    accounting = training.accounting()
    with accounting:
        training.run(2)
    if training.device.type == "cuda":
        process = torch.cuda.max_memory_allocated(training.device)
    else:
        process = None if before is None else _resident("VmHWM") - before
    seconds = min(_seconds_of_a_step(training) for _ in range(2))
    return Measurement(accounting.peak_split, process, seconds)


def _seconds_of_a_step(training: Training) -> float:
    start = time.perf_counter()
    training.run(1)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter() - start


def _start_resident_peak() -> int | None:
    """Reset the peak of resident memory to the current value, and return that in bytes."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024
