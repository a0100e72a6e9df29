"""What the experiments say of where they ran, and what they need installed."""

from __future__ import annotations

import datetime
import importlib
import platform
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["describe_machine", "import_galore_torch"]


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


def import_galore_torch() -> ModuleType:
    """The reference implementation of GaLore, which only tests and experiments need.

    Raises:
        RuntimeError: when it is not installed, with what to install.
    """
    try:
        return importlib.import_module("galore_torch")
    except ImportError as error:
        raise RuntimeError(
            f"galore_torch cannot be imported ({error}). Install it by pip install galore-torch==1.0, or leave it out "
            "with --only"
        ) from error
