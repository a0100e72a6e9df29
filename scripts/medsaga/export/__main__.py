"""``python -m medsaga.export``: write a bundle's network for OpenVINO, and compare the two."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medsaga.bundle.errors import root_cause
from medsaga.bundle.network import load_network
from medsaga.machine import describe_machine
from medsaga.networks import PUBLISHED

from .compare import differences, timings
from .convert import export_network
from .exported import ExportedSegmenter

_TOLERANCE = 1e-4  # of the largest logit


def main(words: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: its words; those of this process where they are None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.export",
        description="Write a trained bundle's network, or published weights, for fast inference on a CPU by OpenVINO.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", help="name or folder of the bundle")
    source.add_argument("--weights", choices=PUBLISHED, help="published weights with SAM's own head, for boxes")
    parser.add_argument("--model", help="the bundle's weights (default: its models/model.pt)")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="also measure the time, N times each")
    arguments = parser.parse_args(words)
    try:
        _run(arguments)
    except Exception as err:  # MONAI wraps an error in a config in several of its own exceptions
        cause = root_cause(err)
        sys.exit(f"{type(cause).__name__}: {cause}")


def _run(arguments: argparse.Namespace) -> None:
    network, head = load_network(arguments.bundle, arguments.model, arguments.weights)
    export_network(network, arguments.output, head)
    print(f"Written to {arguments.output}: {network.encoder}, {network.image_size} px, {network.num_classes} masks.")
    found = differences(network, ExportedSegmenter(arguments.output))
    print("Largest difference to torch: " + ", ".join(f"{v:.1e} ({k})" for k, v in found.items()))
    if max(found.values()) > _TOLERANCE:
        raise ValueError(f"{arguments.output} differs from torch by more than {_TOLERANCE} of the largest logit.")
    if arguments.measure:
        print("\n| Seconds | torch | OpenVINO fp32 | OpenVINO bf16 |\n|---|---|---|---|")
        for row in timings(network, arguments.output, arguments.measure):
            cells = [f"{row[name]:.3f} ({row['torch'] / row[name]:.2f})" for name in ("fp32", "bf16")]
            print(f"| {row['what']} | {row['torch']:.3f} | {' | '.join(cells)} |")
        print(f"\nIn brackets: times faster than torch. Median of {arguments.measure}. {describe_machine('cpu')}.")


if __name__ == "__main__":
    main()
