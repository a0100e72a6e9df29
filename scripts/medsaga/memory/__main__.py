"""``python -m medsaga.memory``: what a bundle's training takes in memory, and settings with which it fits a GPU."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medsaga.bundle.errors import root_cause
from medsaga.files import write_json

from .fit import available, candidates, parse_memory, try_candidates
from .report import draw, report_row, table
from .setup import Setup

_NOTE = (
    "The peaks are of the tensors' memory, without the kernels' own workspaces. 'process' is the CUDA allocator's "
    "peak; on a CPU it is the growth of the process's resident memory."
)


def main(words: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: its words; those of this process where they are None.
    """
    arguments, overrides = _parse(words)
    # what libraries say about themselves would bury the table
    warnings.simplefilter("ignore")
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    try:
        arguments.command(arguments, overrides)
    except Exception as err:  # MONAI wraps an error in a config in several of its own errors
        cause = root_cause(err)
        message = cause.args[0] if isinstance(cause, KeyError) and cause.args else cause
        sys.exit(f"{type(cause).__name__}: {message}")


def _report(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    name = Path(arguments.bundle).resolve().name
    setups = {name: Setup(arguments.bundle, (), overrides)}
    for file in filter(None, arguments.methods.split(",")):
        setups[Path(file).stem] = Setup(arguments.bundle, (file,), overrides)
    for setup in setups.values():
        setup.parser()  # a wrong file or key is reported before the long work starts
    rows = []
    for method, setup in tqdm(setups.items(), desc="methods", unit="method"):
        rows.append(report_row(method, setup, arguments.predict_only))
    print(f"\n{table(rows)}\n\n{_NOTE}")
    parser = setups[name].parser()
    title = f"{name}: {parser.get_parsed_content('image_size')} px, batch {parser.get_parsed_content('batch_size')}"
    figure = Path(arguments.output) / f"memory_{name}.png"
    draw(rows, title, figure)
    print(f"Figure: {figure}")


def _fit(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    overlays = tuple(filter(None, arguments.methods.split(",")))
    setup = Setup(arguments.bundle, overlays, overrides)
    memory = parse_memory(arguments.gpu_memory)
    limit = available(memory)
    print(
        f"{arguments.gpu_memory}: tensors may take {limit / 1e6:.0f} MB, as 5 % and 600 MB are left for CUDA itself.",
        flush=True,
    )
    tried = []
    for candidate, peak in tqdm(
        try_candidates(setup, memory), total=len(candidates(setup)), desc="predicting", leave=False
    ):
        tried.append((candidate, peak))
        fits = "fits" if peak <= limit else "too large"
        settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in candidate.settings.items())
        tqdm.write(f"{peak / 1e6:10.0f} MB   time x {candidate.time:.2f}   {fits:9}   {settings}")
    chosen, peak = tried[-1]
    if peak > limit:
        smallest = min(peak for _, peak in tried)
        raise MemoryError(
            f"{arguments.bundle} does not fit {arguments.gpu_memory}: the smallest peak is {smallest / 1e6:.0f} MB "
            f"of {limit / 1e6:.0f} MB. Lower image_size, or take a smaller network_def#encoder."
        )
    file = Path(arguments.output or f"fit_{arguments.gpu_memory}.json")
    write_json(file, chosen.settings)
    files = ",".join(f"'{name}'" for name in (*setup.files, file))
    chosen_keys = {"batch_size", "accumulation_steps"}
    options = "".join(
        f" --{key} '{value if isinstance(value, str) else json.dumps(value)}'"
        for key, value in overrides.items()
        if key not in chosen_keys
    )
    print(f'\nWritten to {file}. Train with\n\npython -m monai.bundle run training --config_file "[{files}]"{options}')


def _parse(words: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.memory",
        description="Show the memory that a bundle's training takes, or find settings with which it fits a GPU.",
        epilog="Further options '--key value' override the bundle's config, as for python -m monai.bundle.",
    )
    commands = parser.add_subparsers(required=True)
    report = commands.add_parser("report", help="table and figure of a training step's memory by category")
    report.set_defaults(command=_report)
    report.add_argument("--predict-only", action="store_true", help="only predict, do not measure")
    report.add_argument("--output", default="output/memory", help="folder for the figure (default: %(default)s)")
    fit = commands.add_parser("fit", help="the fastest settings that fit a GPU")
    fit.set_defaults(command=_fit)
    fit.add_argument("--gpu-memory", required=True, help="memory of the GPU, for example 8GB, 8GiB or 8000MB")
    fit.add_argument("--output", help="config file for the settings (default: fit_MEMORY.json)")
    for command in (report, fit):
        command.add_argument("--bundle", required=True, help="the bundle's folder")
        command.add_argument("--batch", type=int, help="batch size instead of the bundle's")
        command.add_argument(
            "--methods", default="", help="overlays such as bundles/methods/full.json, separated by commas"
        )
    arguments, rest = parser.parse_known_args(words)
    if len(rest) % 2 or not all(key.startswith("--") for key in rest[::2]):
        parser.error(f"overrides must have the form '--key value': {' '.join(rest)}")
    overrides = {key[2:]: _value(text) for key, text in zip(rest[::2], rest[1::2])}
    if arguments.batch is not None:
        overrides["batch_size"] = arguments.batch
    return arguments, overrides


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
