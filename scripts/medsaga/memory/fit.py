"""Settings with which a bundle's training fits a GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .predict import predict
from .setup import Setup

__all__ = ["Candidate", "available", "candidates", "parse_memory", "try_candidates"]

_UNITS = {"MB": 1e6, "GB": 1e9, "MIB": 2**20, "GIB": 2**30}

# Of a GPU's memory: the CUDA context and the libraries' workspaces, and the allocator's fragmentation.
_RESERVED = 0.6e9
_FRAGMENTED = 0.05

# Time of a step relative to one without these settings, by arithmetic: backward takes twice as long as forward, so one
# more forward pass adds a third, and two more add two thirds. The other two are rules of thumb: transfers hide in part
# behind the computation, and half the batch fills the GPU a little worse.
_RECOMPUTATION = {"off": 1.0, "blocks": 1.33, "least": 1.67}
_OFFLOADING = 1.5
_HALVING = 1.05

# Weights and state of fewer bits are tried last, because results then differ by more than float32's rounding.
_FEWER_BITS = {"precision": "bf16_weights", "state_bits": 8}


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Args:
        settings: values by the config's keys.
        time: estimated time of a step, relative to the fastest settings.
        changes: what results depend on beyond rounding: 0 nothing, 1 a loss taken over smaller batches, 2 weights and
            state of fewer bits, 3 both.
    """

    settings: dict[str, Any]
    time: float
    changes: int


def parse_memory(text: str) -> float:
    """Bytes of a size such as ``8GB`` (10^9 bytes), ``8GiB`` (2^30) or ``8000MB``.

    Raises:
        ValueError: when it is none.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([A-Z]+)", text.strip().upper())
    if match is None or match[2] not in _UNITS or match[1].count(".") > 1:
        raise ValueError(f"--gpu-memory {text} is not a size such as 8GB, 8GiB or 8000MB")
    return float(match[1]) * _UNITS[match[2]]


def available(memory: float) -> float:
    """Bytes for tensors on a GPU of this memory."""
    return memory * (1 - _FRAGMENTED) - _RESERVED


def candidates(setup: Setup) -> list[Candidate]:
    """Settings to try: those that change results least first, and among them the fastest first.

    A config without one of the keys, or whose optimizer has no such option, is tried with the rest. The batch an
    optimizer step sees stays what it is.
    """
    parser = setup.parser()
    keys = [key for key in ("checkpointing", "offload", "accumulation_steps", *_FEWER_BITS) if key in parser]
    rounds_stochastically = "state_bits" in parser["optimizer"]  # other optimizers cannot train weights of fewer bits
    steps = parser.get_parsed_content("accumulation_steps") if "accumulation_steps" in keys else 1
    batch = parser.get_parsed_content("batch_size") * steps
    found = []
    for bits in ({}, _FEWER_BITS) if rounds_stochastically else ({},):
        for accumulation in (k for k in range(1, batch + 1) if batch % k == 0):
            for checkpointing, recomputation in _RECOMPUTATION.items():
                for offload in (False, True):
                    time = recomputation * (_OFFLOADING if offload else 1.0) * _HALVING ** math.log2(accumulation)
                    settings = {"checkpointing": checkpointing, "offload": offload, "accumulation_steps": accumulation}
                    settings = {key: value for key, value in {**settings, **bits}.items() if key in keys}
                    settings["batch_size"] = batch // settings.get("accumulation_steps", 1)
                    found.append(Candidate(settings, time, 2 * bool(bits) + (accumulation > 1)))
    found.sort(key=lambda candidate: (candidate.changes, candidate.time))
    # if keys are missing, several candidates are the same: only the fastest is kept
    return [c for i, c in enumerate(found) if c.settings not in [other.settings for other in found[:i]]]


def try_candidates(setup: Setup, memory: float) -> Iterator[tuple[Candidate, int]]:
    """Predict candidates' peaks in bytes on a GPU, one after another, up to the first that fits."""
    for candidate in candidates(setup):
        peak = sum(predict(setup.override(candidate.settings), "cuda").values())
        yield candidate, peak
        if peak <= available(memory):
            return
