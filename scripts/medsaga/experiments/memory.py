"""``python -m medsaga.experiments.memory``: what a training step takes, by this project and by the methods it replaces.

All rows train the same network's layout on batches of the same shape with a bundle's own loss; they differ in what is
trained, how attention and activations are kept, and the optimizer. Each is measured in a fresh process. Rows done are
kept in a JSON file, so the command may be killed and repeated, or run row by row.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from segment_anything.modeling.image_encoder import Attention as ExplicitAttention
from segment_anything.modeling.transformer import Attention as ExplicitTwoWayAttention

from medsaga.bundle import find_bundle
from medsaga.machine import describe_machine
from medsaga.memory import CATEGORIES, Setup, measure, predict
from medsaga.networks.attention import RelPosAttention, TwoWayAttention
from medsaga.processes import process_context

from .reference import import_galore_torch

__all__ = ["ROWS", "Row", "explicit_attention", "galore_torch_adamw", "main", "run_row", "table"]


@dataclass(frozen=True)
class Row:
    """One way to train.

    Args:
        title: in the table.
        overlay: file of bundles/methods, None for GaLore.
        overrides: of the config, on top of ``_COMMON``.
        explicit: whether attention is ``segment_anything``'s own, which holds all scores of pairs of tokens.
    """

    title: str
    overlay: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    explicit: bool = False


# set for every row, so that no row depends on a bundle's defaults
_COMMON = {
    "rank": 16,
    "checkpointing": "blocks",
    "offload": False,
    "precision": "fp32",
    "update_in_backward": True,
    "state_bits": 32,
    "accumulation_steps": 1,
}
_GALORE_TORCH = {"_target_": "medsaga.experiments.memory.galore_torch_adamw", "param_groups": "@param_groups"}
ROWS = {
    "default": Row("MedSAGa: GaLore rank 16, checkpointing"),
    "leanest": Row(
        "MedSAGa, leanest: bf16 weights, 8-bit states, checkpointing of halves",
        overrides={"checkpointing": "least", "precision": "bf16_weights", "state_bits": 8},
    ),
    "no_checkpointing": Row("MedSAGa without checkpointing", overrides={"checkpointing": "off"}),
    "adamw": Row("(a) AdamW in full, explicit attention", "full.json", {"checkpointing": "off"}, explicit=True),
    "samed": Row("(b) SAMed: LoRA rank 4, explicit attention", "samed.json", {"checkpointing": "off"}, explicit=True),
    "samed_lean": Row("(c) LoRA rank 4, this project's attention, checkpointing", "samed.json"),
    "samed_leanest": Row(
        "(c) at its leanest: bf16 weights, checkpointing of halves",
        "samed.json",
        {"checkpointing": "least", "precision": "bf16_weights"},
    ),
    "galore_torch": Row("(d) MedSAGa's network, galore_torch's optimizer", overrides={"optimizer": _GALORE_TORCH}),
}
# keys that rows with an overlay do not get, because their optimizers have no such options
_OF_GALORE = ("rank", "update_in_backward", "state_bits")


def run_row(name: str, bundle: str, overrides: dict[str, Any], predicted: bool = False) -> dict[str, Any]:
    """Measure or predict one row, in this process.

    Args:
        name: key of ``ROWS``.
        bundle: folder of the bundle whose config is used.
        overrides: encoder, image size, batch size and device.
        predicted: whether to run on tensors without values: no times, but any size.

    Returns:
        ``split`` (bytes by category), ``process`` (bytes) and ``seconds``; the last two are None when predicted.
    """
    row = ROWS[name]
    overlay = (str(Path(bundle).parent / "methods" / row.overlay),) if row.overlay else ()
    common = {key: value for key, value in _COMMON.items() if not (row.overlay and key in _OF_GALORE)}
    setup = Setup(bundle, overlay, {**common, **row.overrides, **overrides})
    torch.manual_seed(0)
    with explicit_attention(row.explicit):
        if predicted:
            return {"split": predict(setup), "process": None, "seconds": None}
        result = measure(setup)
    return {"split": result.split, "process": result.process, "seconds": result.seconds}


@contextmanager
def explicit_attention(active: bool = True) -> Iterator[None]:
    """Put ``segment_anything``'s own attention back into the image encoder and the mask decoder."""
    if not active:
        yield
        return
    with (
        patch.object(RelPosAttention, "forward", ExplicitAttention.forward),
        patch.object(TwoWayAttention, "forward", ExplicitTwoWayAttention.forward),
    ):
        yield


def galore_torch_adamw(param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """``galore_torch``'s optimizer for the groups of :func:`medsaga.optimizers.sam_param_groups`.

    It projects matrices only, so convolutions go into its plain group.

    Raises:
        RuntimeError: when ``galore_torch`` is not installed.
    """
    groups = []
    for group in param_groups:
        options = {key: group[key] for key in ("lr", "weight_decay")}
        plain = group["params"]
        if "rank" in group:
            matrices = [param for param in plain if param.ndim == 2]
            plain = [param for param in plain if param.ndim != 2]
            rank = {"rank": group["rank"], "update_proj_gap": group["update_gap"], "scale": group["scale"]}
            groups.append({"params": matrices, "proj_type": "std", **rank, **options})
        groups.append({"params": plain, **options})
    return import_galore_torch().GaLoreAdamW([g for g in groups if g["params"]], no_deprecation_warning=True)


# --- table and plot --------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown table of the rows of one setting."""
    measured = any(row["seconds"] is not None for row in rows.values())
    heads = ["Training", "peak MB", *CATEGORIES, "peak / (b)", "peak / (c)"]
    if measured:
        heads += ["process MB", "process / (b)", "process / (c)", "s a step", "images a s", "time / (a)"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in _in_order(rows):
        row = rows[name]
        peaks = {other: sum(rows[other]["split"].values()) for other in rows}
        cells = [ROWS[name].title, _megabytes(peaks[name]), *(_megabytes(row["split"][c]) for c in CATEGORIES)]
        cells += [_ratio(peaks[name], peaks.get(other)) for other in ("samed", "samed_lean")]
        if measured:
            process, seconds = ({other: rows[other][key] for other in rows} for key in ("process", "seconds"))
            cells.append(_megabytes(row["process"]))
            cells += [_ratio(row["process"], process.get(other)) for other in ("samed", "samed_lean")]
            cells += [f"{row['seconds']:.2f}", f"{row['batch'] / row['seconds']:.2f}"]
            cells.append(_ratio(row["seconds"], seconds.get("adamw")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _in_order(rows: Iterable[str]) -> list[str]:
    return [name for name in ROWS if name in rows]


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f}"


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "–"


def plot(sections: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """A bar of the accounted peak by category for each row, one panel for each setting."""
    heights = [0.4 * len(rows) + 1 for rows in sections.values()]
    figure = Figure(figsize=(9, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(sections), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (setting, rows) in zip(panels, sections.items()):
        names = _in_order(rows)[::-1]  # matplotlib counts from below
        left = [0.0] * len(names)
        for category in CATEGORIES:
            values = [rows[name]["split"][category] / 1e9 for name in names]
            axes.barh([ROWS[name].title for name in names], values, left=left, label=category)
            left = [a + b for a, b in zip(left, values)]
        axes.set(title=setting, xlabel="GB at the peak")
    panels[0].legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def report(sections: dict[str, dict[str, dict[str, Any]]], picture: Path) -> str:
    """The Markdown page of all settings."""
    lines = [
        "# Memory of a training step",
        "",
        "Random images and fresh weights (seed 0). *Peak* is the most bytes of tensors alive at once in two steps, by "
        "category; *process* the growth of resident memory above imports, on CUDA the allocator's peak. Seconds are of "
        "the shorter of two steps after these. MB are 10⁶ bytes.",
    ]
    for setting, rows in sections.items():
        where = dict.fromkeys(f"{row['machine']}: `{row['command']}`" for row in rows.values())
        lines += ["", f"## {setting}", "", table(rows), *(f"* {line}" for line in where)]
    return "\n".join([*lines, "", f"![Peak by category](figures/{picture.name})", ""])


# --- command ---------------------------------------------------------------------------------------------------------


def _in_new_process(*arguments: Any) -> dict[str, Any]:
    # no fork of this process: what it has allocated would hide part of the growth
    with ProcessPoolExecutor(1, process_context()) as pool:
        try:
            return pool.submit(run_row, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"the process of row {arguments[0]} was killed, most likely because memory ran out. Finished rows are "
                "kept: go on with --only and other rows, a smaller --batch, or --predict"
            ) from error


def main(arguments: list[str] | None = None) -> None:
    """Run the rows asked for, and write JSON, table and plot after each."""
    parser = argparse.ArgumentParser(description="Measure memory and time of a training step, by method.")
    parser.add_argument("--bundle", default="spleen", help="bundle whose config is used (default: %(default)s)")
    parser.add_argument("--encoder", default="vit_b", help="image encoder (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=12, help="batch size (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument(
        "--predict", action="store_true", help="predict, do not run: gives no times, but works at any size"
    )
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    if "galore_torch" in parsed.only:
        import_galore_torch()  # better now than after an hour of other rows

    overrides = {
        "network_def#encoder": parsed.encoder,
        "image_size": parsed.image_size,
        "batch_size": parsed.batch,
        "device": f"$torch.device('{parsed.device}')",
    }
    how = "predicted" if parsed.predict else "measured"
    setting = f"{parsed.encoder}, {parsed.image_size} px, batch {parsed.batch}, {parsed.device}, {how}"
    store = parsed.output / "memory_benchmark.json"
    picture = parsed.output / "figures" / "memory_benchmark.png"
    sections = json.loads(store.read_text()) if store.is_file() else {}
    about = {
        "batch": parsed.batch,
        "machine": describe_machine("cpu" if parsed.predict else parsed.device),
        "command": f"python -m medsaga.experiments.memory {shlex.join(arguments if arguments else sys.argv[1:])}",
    }
    for name in parsed.only:
        print(f"{name} ...", flush=True)
        run = run_row if parsed.predict else _in_new_process
        result = run(name, find_bundle(parsed.bundle), overrides, parsed.predict)
        sections.setdefault(setting, {})[name] = {**result, **about}
        parsed.output.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(sections, indent=1))
        plot(sections, picture)
        (parsed.output / "memory_benchmark.md").write_text(report(sections, picture))
    print(f"\n{table(sections[setting])}\nAll settings: {parsed.output / 'memory_benchmark.md'}")


if __name__ == "__main__":
    main()
