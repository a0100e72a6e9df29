"""``python -m medsaga.challenge``: segment a folder of the "MedSAM on Laptop" challenge's cases from their boxes."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from medsaga.bundle.errors import root_cause
from medsaga.bundle.network import load_network
from medsaga.data import challenge_datalist, read_challenge_case, write_challenge_result
from medsaga.export import ExportedSegmenter
from medsaga.inferers import BoxInferer
from medsaga.machine import describe_machine
from medsaga.networks import PUBLISHED

__all__ = ["main", "segment_folder"]

_COLUMNS = ("case", "modality", "shape", "boxes", "seconds")


def segment_folder(
    cases: str | Path, output: str | Path, network: torch.nn.Module | ExportedSegmenter, head: str
) -> list[dict]:
    """Segment each case, and write its result and how long it took.

    Args:
        cases: folder of npz files with ``imgs`` and ``boxes``, see :func:`~medsaga.data.read_challenge_case`.
        output: folder for results under the cases' names, and for ``seconds.csv``.
        network: in ``eval()``.
        head: what its masks are, see :class:`~medsaga.inferers.PromptedSlices`.

    Returns:
        rows of ``seconds.csv``: case, modality, shape, number of boxes, and seconds from reading to writing.

    Raises:
        ValueError: a case that cannot be read or has no boxes.
    """
    cases, output = Path(cases).expanduser(), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    inferer = BoxInferer(head)
    rows: list[dict] = []
    with open(output / "seconds.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for case in tqdm(challenge_datalist(cases), desc="cases", unit="case"):
            path = Path(case["image"])
            start = time.perf_counter()
            item = read_challenge_case(path)
            if "boxes" not in item:
                raise ValueError(f"{path}: it has no array 'boxes'. The boxes say what to segment.")
            numbers = inferer(item["image"][None], network, item["boxes"])
            write_challenge_result(output / path.relative_to(cases), numbers[0])
            row = {
                "case": str(path.relative_to(cases)),
                "modality": item["modality"],
                "shape": "x".join(str(n) for n in item["image"].shape[1:]),
                "boxes": len(item["boxes"]),
                "seconds": round(time.perf_counter() - start, 3),
            }
            rows.append(row)
            writer.writerow(row)
            file.flush()
    return rows


def main(words: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: its words; those of this process where they are None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.challenge",
        description="Segment npz cases of the CVPR 2024 'MedSAM on Laptop' challenge from the boxes in them.",
    )
    parser.add_argument("--cases", required=True, help="folder of npz files")
    parser.add_argument("--output", required=True, help="folder for the results and seconds.csv")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", default="lite_medsam", choices=PUBLISHED, help="published weights (%(default)s)")
    source.add_argument("--bundle", help="name or folder of a bundle; its trained network is used")
    source.add_argument("--exported", help="folder that python -m medsaga.export has written")
    parser.add_argument("--model", help="the bundle's weights (default: its models/model.pt)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="for --exported (%(default)s)")
    arguments = parser.parse_args(words)
    try:
        if arguments.exported:
            network = ExportedSegmenter(arguments.exported, arguments.precision)
            head = network.head
        else:
            network, head = load_network(arguments.bundle, arguments.model, arguments.weights)
        rows = segment_folder(arguments.cases, arguments.output, network, head)
    except Exception as err:  # MONAI wraps an error in a config in several of its own errors
        cause = root_cause(err)
        sys.exit(f"{type(cause).__name__}: {cause}")
    seconds = statistics.mean(row["seconds"] for row in rows)
    print(f"{len(rows)} cases, {seconds:.2f} s a case on average, in {arguments.output}. {describe_machine('cpu')}.")


if __name__ == "__main__":
    main()
