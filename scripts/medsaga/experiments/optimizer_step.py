"""``python -m medsaga.experiments.optimizer_step``: time and state of an optimizer's step over SAM ViT-B's matrices.

The gradients are there already, so nothing but ``step`` is timed. AdamW is ``torch.optim.AdamW`` as it comes, and with
``fused=True``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from medsaga.machine import describe_machine
from medsaga.optimizers import GaLoreAdamW

from .reference import import_galore_torch

__all__ = ["OPTIMIZERS", "encoder_matrices", "main", "measure_steps", "state_bytes", "table"]

OPTIMIZERS = ("AdamW", "AdamW, fused", "GaLoreAdamW", "GaLoreAdamW, 8 bits", "galore_torch")
# steps that show a plain step's time well enough
_PLAIN_STEPS = 20


def encoder_matrices(width: int = 768, depth: int = 12) -> list[tuple[int, int]]:
    """Shapes of a ViT's matrices: qkv, proj and the two of the MLP in each block; 48 of them in ViT-B."""
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * depth


def measure_steps(
    name: str, shapes: list[tuple[int, int]], rank: int = 16, update_gap: int = 200, device: str = "cpu"
) -> dict[str, float]:
    """Time the steps of one optimizer over matrices with random gradients.

    GaLoreAdamW runs ``update_gap + 10`` steps, which include the first step and a refresh of every basis. For the
    others fewer steps are enough, because their steps repeat: AdamW runs 20. ``galore_torch`` refreshes all bases in
    its first step and in every ``update_gap``-th; it runs such a step and 19 plain ones, and the mean is computed from
    both.

    Args:
        name: one of ``OPTIMIZERS``.
        shapes: of the matrices.
        rank: of the projections.
        update_gap: steps between two refreshes of a basis.
        device: where the matrices are.

    Returns:
        Seconds ``mean``, ``median`` and ``longest``, and ``bytes`` of state.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(device)
    optimizer = _build(name, params, rank, update_gap)
    count = update_gap + 10 if name.startswith("GaLoreAdamW") else _PLAIN_STEPS
    seconds = list(_timed(optimizer.step, count, device))
    mean = statistics.fmean(seconds)
    if name == "galore_torch":
        mean = (seconds[0] + (update_gap - 1) * statistics.fmean(seconds[1:])) / update_gap
    elif name.startswith("AdamW"):
        seconds = seconds[1:]  # the first makes the state
        mean = statistics.fmean(seconds)
    return {
        "mean": mean,
        "median": statistics.median(seconds),
        "longest": max(seconds),
        "bytes": state_bytes(optimizer),
    }


def _build(name: str, params: list[Tensor], rank: int, update_gap: int) -> torch.optim.Optimizer:
    if name.startswith("AdamW"):
        return torch.optim.AdamW(params, fused=name.endswith("fused") or None)
    if name == "galore_torch":
        group = {"params": params, "rank": rank, "update_proj_gap": update_gap, "scale": 1.0, "proj_type": "std"}
        return import_galore_torch().GaLoreAdamW([group], no_deprecation_warning=True)
    bits = 8 if name.endswith("8 bits") else 32
    return GaLoreAdamW(params, rank=rank, update_gap=update_gap, state_bits=bits)


def _timed(step: Callable[[], object], count: int, device: str) -> Iterator[float]:
    for _ in range(count):
        start = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        yield time.perf_counter() - start


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state, ``galore_torch``'s projectors included."""
    total = 0
    for state in optimizer.state.values():
        values = list(state.values())
        values += [value.ortho_matrix for value in values if hasattr(value, "ortho_matrix")]
        total += sum(value.nbytes for value in values if isinstance(value, Tensor))
    return total


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown table of measurements by optimizer; ratios where ``AdamW`` is among them."""
    lines = [
        "| Optimizer | mean ms | median ms | longest ms | time / AdamW | state MB | state / AdamW |",
        "|---|---|---|---|---|---|---|",
    ]
    base = rows.get("AdamW")
    for name, row in rows.items():
        times = [f"{1000 * row[key]:.1f}" for key in ("mean", "median", "longest")]
        ratios = [f"{row[key] / base[key]:.3f}" if base else "–" for key in ("mean", "bytes")]
        lines.append(f"| {name} | {' | '.join(times)} | {ratios[0]} | {row['bytes'] / 1e6:.2f} | {ratios[1]} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure each optimizer and print the table."""
    parser = argparse.ArgumentParser(description="Measure time and state of an optimizer's step over a ViT's matrices.")
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS, help="optimizers to measure")
    parser.add_argument("--width", type=int, default=768, help="width of the ViT (default: %(default)s, ViT-B)")
    parser.add_argument("--depth", type=int, default=12, help="depth of the ViT (default: %(default)s, ViT-B)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--update_gap", type=int, default=200, help="steps between refreshes (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    shapes = encoder_matrices(options.width, options.depth)
    rows = {}
    for name in options.only:
        print(f"measuring {name} ...", flush=True)
        rows[name] = measure_steps(name, shapes, options.rank, options.update_gap, options.device)
    print(
        f"\n{len(shapes)} matrices, width {options.width}, rank {options.rank}, bases anew every {options.update_gap} "
        f"steps. {describe_machine(options.device)}.\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
