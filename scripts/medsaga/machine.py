"""Where a figure was measured."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

import torch

__all__ = ["describe_machine"]


def describe_machine(device: str) -> str:
    """Processor or GPU, threads, torch version and date, for beside a figure."""
    if device.startswith("cuda"):
        machine = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        threads = torch.get_num_threads()
        machine = f"{(names or [platform.processor()])[0]}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{machine}; torch {torch.__version__}, {datetime.date.today()}"
