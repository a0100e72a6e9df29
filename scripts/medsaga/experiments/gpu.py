"""``python -m medsaga.experiments.gpu --minutes 8``: what the pages say of GPUs, checked on the one at hand.

Weights are random and images too, but for the short training, whose data are generated: nothing has to be fetched. The
page is written anew after each part, so that a run that is cut off leaves what it has found. Without a GPU the same
commands run at toy sizes, which shows that they run and nothing else.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.data import write_decathlon_phantoms
from medsaga.files import replacing, write_json
from medsaga.machine import describe_machine
from medsaga.networks import SamSegmenter

from .bundle_run import execute
from .memory import ROWS, run_row

__all__ = ["PARTS", "main"]

_ROWS = ("default", "samed", "leanest", "samed_lean", "adamw", "no_checkpointing", "galore_torch")
_OF_VIT_H = ("default", "leanest", "samed_lean")  # the others take more than most GPUs have
# encoder, pixels, batch, rows, precisions
_SIZES = {
    "cuda": [
        ("vit_b", 512, 12, _ROWS, ("fp32", "bf16", "fp16")),
        ("vit_b", 1024, 1, _ROWS, ("fp32", "bf16")),
        ("vit_h", 1024, 1, _OF_VIT_H, ("fp32", "bf16")),
    ],
    "cpu": [("vit_test", 64, 2, _ROWS, ("fp32", "bf16"))],
}
_NETWORK = {"cuda": ("vit_b", 1024), "cpu": ("vit_test", 64)}
_REPEATS = 20
_FUSED = ("flash", "fmha", "efficient_attention", "cudnn_attention", "sdpa")  # in names of PyTorch's fused kernels


@dataclass
class Run:
    """One run of the command.

    Attributes:
        device: ``cuda`` or ``cpu``.
        end: when it has to be over, by :func:`time.monotonic`.
        work: folder for runs.
        page: file to write; its figures lie beside it as JSON.
        sections: title → lines, as far as they are known.
    """

    device: str
    end: float
    work: Path
    page: Path
    sections: dict[str, list[str]] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def put(self, title: str, lines: list[str]) -> None:
        """Write a section, and the page."""
        self.sections[title] = lines
        head = "# What a GPU does" if self.device == "cuda" else "# The GPU check without a GPU: toy sizes, no result"
        text = [head, "", f"{describe_machine(self.device)}. `python -m medsaga.experiments.gpu`. Random weights."]
        for name, section in self.sections.items():
            text += ["", f"## {name}", "", *section]
        with replacing(self.page) as temporary:
            temporary.write_text("\n".join(text) + "\n")
        write_json(self.page.with_suffix(".json"), self.sections)


def steps(run: Run) -> Iterator[str]:
    """Peak memory and time of a training step, predicted and measured."""
    title = "A training step"
    lines = [
        "Peak of the allocator, time of the shorter of two steps. *Predicted* runs on tensors without values.",
        "",
        "| Training | precision | predicted MB | tensors MB | allocator MB | allocator ÷ predicted | s a step | peak ÷ "
        "SAMed | time ÷ SAMed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for encoder, size, batch, names, precisions in _SIZES[run.device]:
        lines.append(f"| **{encoder}, {size} px, batch {batch}** | | | | | | | | |")
        samed: dict[str, tuple[float, float]] = {}
        for name, precision in _combined(names, precisions):
            if run.left() < 60:
                run.put(title, [*lines, "", f"Out of time before {ROWS[name].title}, {precision}."])
                return
            yield f"{encoder} {size} px, {name} {precision}"
            options = {"network_def#encoder": encoder, "image_size": size, "batch_size": batch}
            row = _row(run, name, precision, options)
            if isinstance(row, str):
                lines.append(f"| {ROWS[name].title} | {precision} | {row} | | | | | | |")
            else:
                predicted, tensors, peak, seconds = row
                if name == "samed":
                    samed[precision] = peak, seconds
                base = samed.get(precision if precision in samed else "fp32")
                ratios = [f"{peak / base[0]:.2f}", f"{seconds / base[1]:.2f}"] if base else ["–", "–"]
                numbers = [f"{predicted / 1e6:,.0f}", f"{tensors / 1e6:,.0f}", f"{peak / 1e6:,.0f}"]
                numbers += [f"{peak / predicted:.2f}", f"{seconds:.3f}", *ratios]
                lines.append(f"| {ROWS[name].title} | {precision} | {' | '.join(numbers)} |")
            run.put(title, lines)


def _combined(names: tuple[str, ...], precisions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for precision in precisions:
        # SAMed first, as the others are divided by it; the leanest has a precision of its own
        for name in sorted(names, key=lambda name: name != "samed"):
            if name != "leanest":
                yield name, precision
            elif precision == precisions[0]:
                yield name, "bf16_weights"


def _row(run: Run, name: str, precision: str, options: dict[str, Any]) -> tuple[float, float, float, float] | str:
    """Predicted bytes, bytes of tensors, bytes of the allocator, seconds; or why there are none."""
    if name == "galore_torch" and importlib.util.find_spec("galore_torch") is None:
        return "galore_torch is not installed"
    own = {} if name == "leanest" else {"precision": precision}
    options = {**options, **own, "device": f"$torch.device('{run.device}')"}
    bundle = find_bundle("spleen")
    predicted = sum(run_row(name, bundle, options, predicted=True)["split"].values())
    _free(run.device)
    try:
        result = run_row(name, bundle, options)
    except torch.OutOfMemoryError:
        return f"{predicted / 1e6:,.0f} MB predicted: out of memory"
    finally:
        _free(run.device)
    tensors = sum(result["split"].values())
    return predicted, tensors, (result["process"] if run.device == "cuda" else tensors), result["seconds"]


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _network(run: Run, **options: Any) -> tuple[SamSegmenter, torch.Tensor]:
    encoder, size = _NETWORK[run.device]
    torch.manual_seed(0)
    network = SamSegmenter(encoder, size, 3, **options).to(run.device).eval()
    return network, torch.rand(1, 1, size, size, device=run.device)


def kernels(run: Run) -> Iterator[str]:
    """Which kernels attention runs in, forward and backward."""
    yield "kernels"
    found = {}
    for precision in ("fp32", "bf16"):
        network, image = _network(run, precision=precision, checkpointing="blocks")
        network.train()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.device == "cuda" else [])]
        with profile(activities=activities) as profiled:
            network(image).square().mean().backward()
        names = {event.key for event in profiled.key_averages()}
        found[precision] = sorted(name for name in names if any(word in name.lower() for word in _FUSED))
    run.put(
        "Kernels of attention",
        [f"* {precision}: {', '.join(f'`{n[:100]}`' for n in names) or 'none'}" for precision, names in found.items()],
    )


def compiled(run: Run) -> Iterator[str]:
    """``torch.compile`` against the network as it is."""
    yield "torch.compile"
    network, image = _network(run)
    with torch.no_grad():
        expected = network(image)
        try:
            fast = torch.compile(network)
            difference = float((fast(image) - expected).abs().max() / expected.abs().max())
        except Exception as error:  # of many kinds: no compiler, no Triton, an operator that it does not know
            run.put("torch.compile", [f"It fails: {type(error).__name__}: {str(error).splitlines()[0]}"])
            return
        eager, quick = (_seconds(run, call) for call in (lambda: network(image), lambda: fast(image)))
    run.put(
        "torch.compile",
        [f"Forward pass {1000 * eager:.1f} ms as it is, {1000 * quick:.1f} ms compiled; largest difference "
         f"{difference:.1e} of the largest logit."],
    )  # fmt: skip


def clicks(run: Run) -> Iterator[str]:
    """How fast an image is embedded and a click answered."""
    yield "clicks"
    network, image = _network(run, precision="bf16")
    size = image.shape[-1]
    points = torch.full((1, 1, 2), size / 2, device=run.device), torch.ones(1, 1, device=run.device)
    with torch.no_grad():
        embedding = network.encode(image)
        once = _seconds(run, lambda: network.encode(image))
        click = _seconds(run, lambda: network.decode(embedding, points).argmax(1).cpu())
    run.put(
        "Clicks",
        [f"{_NETWORK[run.device][0]} at {size} px, bf16: an image is embedded in {1000 * once:.1f} ms, and "
         f"{1 / click:.0f} clicks a second are answered."],
    )  # fmt: skip


def _seconds(run: Run, call: Callable[[], object]) -> float:
    """Seconds of one call: the mean of many calls after a few that do not count."""
    for _ in range(3):
        call()
    if run.device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        call()
    if run.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / _REPEATS


def training(run: Run) -> Iterator[str]:
    """A bundle trained and scored by MONAI's own command."""
    yield "a short training"
    phantoms = write_decathlon_phantoms(run.work / "phantoms", cases=16)
    options: dict[str, Any] = {
        "dataset_dir": str(phantoms),
        "test_patients": 4,
        "val_patients": 2,
        "train_patients": 10,
    }
    options |= {"device": f"$torch.device('{run.device}')", "train#trainer#max_epochs": 12, "val_interval": 6}
    if run.device == "cpu":
        options |= {"network_def#encoder": "vit_test", "image_size": 64, "weights": None, "num_slices": 8}
        options |= {"train#trainer#max_epochs": 2, "val_interval": 2, "fine_features": False}
        options = {key: "$None" if value is None else value for key, value in options.items()}
    folder = run.work / "hippocampus"
    folder.mkdir()
    start = time.monotonic()
    execute(folder, Path(find_bundle("hippocampus")), [], options, run.work / "cache")
    scores = json.loads((folder / "output" / "evaluation" / "metrics.json").read_text())["mean"]["dice"]
    run.put(
        "A short training",
        [f"hippocampus on generated phantoms, {options['train#trainer#max_epochs']} epochs, trained and scored by "
         f"MONAI's command in {time.monotonic() - start:.0f} s: Dice {scores['mean']:.3f} on {scores['n']} cases."],
    )  # fmt: skip


def tests(run: Run) -> Iterator[str]:
    """The tests that need a GPU."""
    yield "tests"
    folder = Path(find_bundle("hippocampus")).parents[1] / "tests"
    if not folder.is_dir() or importlib.util.find_spec("pytest") is None:
        run.put("Tests", ["Not run: no folder `tests`, or pytest is not installed."])
        return
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(folder)]
    try:
        done = subprocess.run(words, cwd=folder.parent, capture_output=True, text=True, timeout=max(30, run.left()))
    except subprocess.TimeoutExpired:
        run.put("Tests", ["`pytest -m gpu`: out of time."])
        return
    (run.work / "tests.log").write_text(done.stdout + done.stderr)
    run.put("Tests", [f"`pytest -m gpu`: {(done.stdout.strip() or 'nothing printed').splitlines()[-1]}"])


# the most wanted first: the time may not be enough for all
PARTS = (kernels, clicks, training, tests, steps, compiled)


def main(arguments: list[str] | None = None) -> None:
    """Run all parts and print the page."""
    parser = argparse.ArgumentParser(description="Check what the documentation says of GPUs on this machine's GPU.")
    parser.add_argument("--minutes", type=float, default=8, help="most minutes that it takes (default: %(default)s)")
    parser.add_argument("--device", choices=_SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("output/gpu"), help="folder for runs (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="file to write (default: gpu.md in --work)")
    options = parser.parse_args(arguments)
    work = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run = Run(options.device, time.monotonic() + 60 * options.minutes, work, options.page or work / "gpu.md")
    with tqdm(PARTS, desc="GPU check", unit="part") as progress:
        for part in progress:
            if run.left() < 0:
                run.put(part.__name__.capitalize(), ["Not run: out of time."])
                continue
            try:
                for what in part(run):
                    progress.set_postfix_str(what)
            except RuntimeError as error:
                run.put(part.__name__.capitalize(), [f"It fails: {error}"])
            _free(run.device)
    print(run.page.read_text())


if __name__ == "__main__":
    main()
