"""``python -m medsaga.experiments.following``: Dice of organs followed through a volume from boxes on slices."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.bundle.network import load_network
from medsaga.files import write_json
from medsaga.inferers import EmbeddingCache, PromptedSlices, SlicePrompt
from medsaga.inferers.click_boxes import box_around
from medsaga.machine import describe_machine
from medsaga.transforms import OrientSlicesd, ReadImaged

from .annotator import dice
from .boxes import named_object

__all__ = ["boxes_on", "main"]

# of an object's extent, the slices that get a box around it
_PLACES = {"1 slice": (0.5,), "2": (0.25, 0.75), "3": (0.1, 0.5, 0.9), "5": (0.05, 0.25, 0.5, 0.75, 0.95)}
_BOX = "3-D box"


def boxes_on(truth: np.ndarray, prompt: str) -> dict[int, SlicePrompt]:
    """Prompts of an annotator who knows the truth.

    Args:
        truth: bool (H, W, D), not empty.
        prompt: how many slices get a box around the object: ``1 slice``, ``2``, ``3``, ``5``; or ``3-D box``.
    """
    first, last = np.flatnonzero(truth.any(axis=(0, 1)))[[0, -1]].tolist()
    if prompt == _BOX:
        box = box_around(truth.any(axis=2))
        return {index: SlicePrompt(box=box) for index in range(first, last + 1)}
    places = [round(first + share * (last - first)) for share in _PLACES[prompt]]
    return {index: SlicePrompt(box=box_around(truth[..., index])) for index in places if truth[..., index].any()}


def _extent(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask.any(axis=(0, 1)))[[0, -1]] if mask.any() else np.zeros(2, int)


def _late(found: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """By how many slices a mask begins and ends later than the truth."""
    begin, end = (_extent(found) - _extent(truth)).tolist()
    return begin, end


def _table(rows: Mapping[str, Mapping[str, tuple[float, int, int]]]) -> str:
    prompts = [*_PLACES, _BOX]
    lines = ["| | " + " | ".join(prompts) + " |", "|---" * (len(prompts) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{score:.3f} ({begin}, {end})" for score, begin, end in (row[prompt] for prompt in prompts)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Follow each object and print the table."""
    parser = argparse.ArgumentParser(description="Follow objects through a volume, and print their Dice.")
    parser.add_argument("--image", type=Path, required=True, help="file of the volume")
    parser.add_argument("--label", type=Path, required=True, help="file of its label")
    parser.add_argument(
        "--objects", type=named_object, nargs="+", required=True, metavar="NUMBER=NAME", help="objects of the label"
    )
    parser.add_argument("--bundle", default="amos", help="bundle whose preprocessing is used (default: %(default)s)")
    parser.add_argument("--weights", default="lite_medsam", help="published weights (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/following.json"), help="default: %(default)s")
    parsed = parser.parse_args(arguments)

    config = ConfigParser()
    config.read_config(str(Path(find_bundle(parsed.bundle)) / "configs" / "inference.json"))
    image = config.get_parsed_content("preprocessing")({"image": str(parsed.image)})["image"].as_tensor()
    read = ReadImaged("label")({"label": str(parsed.label)})
    label = OrientSlicesd("label", config.get_parsed_content("plane"))(read)["label"][0].numpy()
    network, head = load_network(weights=parsed.weights)
    prompted = PromptedSlices(image.float(), network, EmbeddingCache(2**31), "image", head)
    rows: dict[str, dict[str, tuple[float, int, int]]] = {}
    for number, name in tqdm(parsed.objects, unit="object"):
        truth = label == number
        if not truth.any():
            raise ValueError(f"{parsed.label} has no voxel of {number} ({name}).")
        rows[name] = {}
        for prompt in [*_PLACES, _BOX]:
            found = prompted.segment(boxes_on(truth, prompt), propagate=True).bool().numpy()
            rows[name][prompt] = (dice(found, truth), *_late(found, truth))
    words = shlex.join(arguments if arguments is not None else sys.argv[1:])
    command, machine = f"python -m medsaga.experiments.following {words}", describe_machine("cpu")
    write_json(parsed.output, {"objects": rows, "command": command, "machine": machine})
    print(f"Dice in 3-D (begins, ends so many slices late):\n\n{_table(rows)}\n{machine}. In {parsed.output}")


if __name__ == "__main__":
    main()
