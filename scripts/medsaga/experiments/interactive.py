"""``python -m medsaga.experiments.interactive``: Dice with 1, 3 and 10 clicks and with a box, on unseen patients.

An annotator who knows the truth clicks on the middle of an object, and then, one click after another, on the middle of
the largest region where the network is wrong, as it answers all clicks so far. What is measured is the network's own
answer, without what :class:`~medsaga.inferers.PromptedSlices` adds to it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.bundle import ConfigParser
from monai.transforms.utils import generate_spatial_bounding_box
from scipy.ndimage import distance_transform_edt, label
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.bundle.network import load_network
from medsaga.data import evaluation_parts, training_parts
from medsaga.files import write_json
from medsaga.networks import PUBLISHED, SamSegmenter, load_weights
from medsaga.reading import name_without_suffix
from medsaga.transforms import fit_square, undo_fit_square

from .annotator import dice
from .machine import describe_machine

__all__ = ["Click", "main", "next_click"]

Click = tuple[int, int, int]  # row, column, 1 inside the object or 0 outside


def next_click(predicted: np.ndarray, truth: np.ndarray) -> Click | None:
    """Where an annotator clicks who sees a mask: in the largest wrong region, farthest from its border.

    Args:
        predicted: mask (H, W).
        truth: mask (H, W).

    Returns:
        the click, positive where the object was missed; None where nothing is wrong.

    Source:
        Segment Anything (arXiv 2304.02643), appendix D.1 (the first click).
    """
    best: tuple[int, np.ndarray] | None = None
    for wrong in (truth & ~predicted, predicted & ~truth):
        regions, count = label(wrong)
        if count:
            sizes = np.bincount(regions.ravel())[1:]
            if best is None or sizes.max() > best[0]:
                best = int(sizes.max()), regions == sizes.argmax() + 1
    if best is None:
        return None
    # the image's edge is a border too
    distance = distance_transform_edt(np.pad(best[1], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    return int(row), int(column), int(truth[row, column])


@dataclass
class Object:
    """One class on one slice, and what comes of it by prompt."""

    case: str
    name: str  # of the class
    index: int  # of the slice
    pixels: np.ndarray  # (H, W) or (H, W, 3)
    truth: np.ndarray
    box: tuple[int, int, int, int]  # first and last row and column: r0, c0, r1, c1
    clicks: list[Click]
    masks: dict[str, np.ndarray]  # "automatic", "1 click", ..., "box"

    @property
    def dice(self) -> dict[str, float]:
        """Dice by prompt."""
        return {prompt: dice(mask, self.truth) for prompt, mask in self.masks.items()}


class Slice:
    """A slice embedded once, and the masks of one class under any prompts.

    Args:
        network: in ``eval()``.
        slices: the slice and those of its chunk, (n, C, H, W), n = 1 for a network that treats each for itself.
        place: which of them.
        number: the class; None for published weights, the first of whose masks is the object.
    """

    def __init__(self, network: SamSegmenter, slices: torch.Tensor, place: int, number: int | None) -> None:
        self.network, self.number = network, number
        self.shape = tuple(slices.shape[-2:])
        self.device = network.pixel_mean.device
        images = fit_square(slices.float(), network.image_size).to(self.device)
        self.embedding = network.encode(images)[place : place + 1]
        self.scale = network.image_size / max(self.shape)

    def mask(self, clicks: Sequence[Click] = (), box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The mask of the object, (H, W)."""
        points = corners = None
        if clicks:
            # pixel centres are whole numbers, in the slice and in the network's input
            xy = [[(column + 0.5) * self.scale - 0.5, (row + 0.5) * self.scale - 0.5] for row, column, _ in clicks]
            labels = [[float(inside) for _, _, inside in clicks]]
            points = (torch.tensor([xy], device=self.device), torch.tensor(labels, device=self.device))
        if box is not None:
            r0, c0, r1, c1 = box
            edges = torch.tensor([[c0, r0, c1 + 1, r1 + 1]], dtype=torch.float32, device=self.device)
            corners = edges * self.scale - 0.5
        logits = self.network.decode(self.embedding, points, corners)
        logits = undo_fit_square(logits, self.network.image_size, self.shape)[0].cpu()
        return (logits[0] > 0 if self.number is None else logits.argmax(dim=0) == self.number).numpy()


@torch.no_grad()
def prompted(
    network: SamSegmenter,
    case: dict[str, torch.Tensor],
    name: str,
    class_names: Sequence[str],
    at: Sequence[int],
    depth: int,
    published: bool = False,
) -> list[Object]:
    """Prompt each class of a case on the slice where it is largest.

    Args:
        network: in ``eval()``.
        case: preprocessed ``image`` (C, H, W) or (C, H, W, D) and ``label``.
        name: of the case.
        class_names: background first.
        at: after how many clicks the mask is kept.
        depth: number of neighbouring slices that the network takes at a time.
        published: the network has SAM's own head, which knows no classes and does nothing without a prompt.

    Returns:
        the classes that the case shows.
    """
    image, numbers = (torch.as_tensor(np.asarray(case[key])) for key in ("image", "label"))
    if image.ndim == 3:
        image, numbers = image[..., None], numbers[..., None]
    image, numbers = image.permute(3, 0, 1, 2), numbers[0].permute(2, 0, 1)
    found = []
    for number in range(1, len(class_names)):
        areas = (numbers == number).sum(dim=(1, 2))
        index = int(areas.argmax())
        if areas[index] == 0:
            continue
        start = index - index % depth
        prompts = Slice(network, image[start : start + depth], index - start, None if published else number)
        truth = (numbers[index] == number).numpy()
        (r0, c0), (r1, c1) = generate_spatial_bounding_box(truth[None])
        box = (r0, c0, r1 - 1, c1 - 1)
        masks = {} if published else {"automatic": prompts.mask()}
        clicks: list[Click] = []
        mask = np.zeros_like(truth)
        for count in range(1, max(at) + 1):
            click = next_click(mask, truth)
            if click is not None:
                clicks.append(click)
                mask = prompts.mask(clicks)
            if count in at:
                masks[_title(count)] = mask
        masks["box"] = prompts.mask(box=box)
        pixels = image[index].permute(1, 2, 0).numpy()
        pixels = pixels if pixels.shape[-1] == 3 else pixels[..., 0]
        found.append(Object(name, class_names[number], index, pixels, truth, box, clicks, masks))
    return found


def _title(count: int) -> str:
    return f"{count} click{'s' if count > 1 else ''}"


def summary(objects: Sequence[Object]) -> dict[str, dict[str, dict[str, float]]]:
    """{class or "all": {prompt: {"mean", "std", "n"}}} of the Dice."""
    result = {}
    for name in [*dict.fromkeys(o.name for o in objects), "all"]:
        scores = [o.dice for o in objects if name in (o.name, "all")]
        result[name] = {
            prompt: {
                "mean": float(np.mean([s[prompt] for s in scores])),
                "std": float(np.std([s[prompt] for s in scores])),
                "n": len(scores),
            }
            for prompt in scores[0]
        }
    return result


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown table of Dice, a line for each class."""
    prompts = list(found["all"])
    lines = [f"| Class | {' | '.join(prompts)} | N |", "|---" * (len(prompts) + 2) + "|"]
    for name, scores in found.items():
        cells = [f"{scores[p]['mean']:.3f} ± {scores[p]['std']:.3f}" for p in prompts]
        lines.append(f"| {name} | {' | '.join(cells)} | {scores[prompts[0]]['n']} |")
    return "\n".join(lines) + "\n"


def draw(shown: Object, path: Path) -> None:
    """Image and reference, then the mask under each prompt with its clicks (+ inside, × outside) or its box."""
    panels = [("reference", shown.truth), *shown.masks.items()]
    figure = Figure(figsize=(2.4 * len(panels), 3), dpi=100, layout="constrained")
    for axes, (prompt, mask) in zip(figure.subplots(1, len(panels)), panels):
        axes.imshow(shown.pixels, cmap="gray", vmin=0, vmax=1)
        axes.imshow(np.ma.masked_equal(mask, 0), cmap="autumn", alpha=0.45)
        axes.set_title(prompt if prompt == "reference" else f"{prompt}: {shown.dice[prompt]:.3f}", fontsize=9)
        axes.set_axis_off()
        if prompt.endswith(("click", "clicks")):
            for row, column, inside in shown.clicks[: int(prompt.split()[0])]:
                axes.plot(column, row, "+" if inside else "x", color="lime" if inside else "cyan", markersize=7)
        if prompt == "box":
            r0, c0, r1, c1 = shown.box
            frame = (c0 - 0.5, r0 - 0.5), c1 - c0 + 1, r1 - r0 + 1
            axes.add_patch(Rectangle(*frame, fill=False, edgecolor="lime"))
    figure.suptitle(f"{shown.case}, slice {shown.index}, {shown.name}: Dice", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _test_cases(config: ConfigParser, model: Path | None) -> list[dict]:
    """The patients to test a model with: those that its record names; drawn by seed for published weights."""
    draw = {name: config.get_parsed_content(f"{name}_patients") for name in ("test", "val", "train")}
    arguments = (config.get("split"), draw["test"], draw["val"], draw["train"], config.get_parsed_content("seed"))
    datalist = config.get_parsed_content("datalist")
    if model is None:
        return training_parts(datalist, *arguments)["test"]
    return evaluation_parts(datalist, model, *arguments)["test"]


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, for example image_size=112")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers of clicks are at least 1")
    return numbers


def main(arguments: list[str] | None = None) -> None:
    """Prompt the test patients' largest slices; print the table, write figures' values and a picture."""
    parser = argparse.ArgumentParser(description="Dice with clicks and with a box on unseen patients.")
    parser.add_argument("--bundle", default="hippocampus", help="default: %(default)s")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the bundle's data")
    parser.add_argument("--model", type=Path, help="trained weights (default: the bundle's models/model.pt)")
    parser.add_argument(
        "--weights",
        choices=PUBLISHED,
        help="published weights as they are, at the size they were trained at, in the place of a model",
    )
    parser.add_argument("--overlay", nargs="+", default=[], help="of bundles/methods, as in training: msa")
    parser.add_argument("--override", type=_override, nargs="+", default=[], metavar="KEY=VALUE", help="of the configs")
    parser.add_argument("--clicks", type=_numbers, default=[1, 3, 10], help="default: 1,3,10")
    parser.add_argument("--seed", type=int, default=0, help="of the split, where the model names none (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("output/interactive"), help="default: %(default)s")
    parsed = parser.parse_args(arguments)

    bundle = Path(find_bundle(parsed.bundle))
    config = ConfigParser()
    overlays = [bundle.parent / "methods" / f"{name}.json" for name in parsed.overlay]
    config.read_config([str(path) for path in (bundle / "configs" / "train.json", *overlays)])
    for key, value in parsed.override:
        config[key] = value
    config["dataset_dir"], config["seed"], config["weights"] = str(parsed.dataset_dir), parsed.seed, None
    model = parsed.model or bundle / "models" / "model.pt"
    if parsed.weights:
        network, _ = load_network(weights=parsed.weights)
    else:
        network = config.get_parsed_content("network_def")
        load_weights(network, model, trained=True)
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    class_names = config.get_parsed_content("class_names")
    depth = (not parsed.weights and config.get("network_def").get("adapter_depth")) or 1

    objects: list[Object] = []
    preprocessing = config.get_parsed_content("preprocessing")
    for case in tqdm(_test_cases(config, None if parsed.weights else model), unit="case"):
        data = preprocessing({key: case[key] for key in ("image", "label")})
        name = name_without_suffix(case["image"])
        objects += prompted(network, data, name, class_names, parsed.clicks, depth, bool(parsed.weights))
    if not objects:
        raise ValueError(f"None of the test cases in {parsed.dataset_dir} shows a class.")
    found = summary(objects)
    words = arguments if arguments is not None else sys.argv[1:]
    content = {
        "dice": found,
        "objects": [
            {"case": o.case, "class": o.name, "slice": o.index, "dice": o.dice, "clicks": o.clicks} for o in objects
        ],
        "seed": parsed.seed,
        "command": f"python -m medsaga.experiments.interactive {shlex.join(words)}",
        "machine": describe_machine(str(network.pixel_mean.device)),
    }
    write_json(parsed.output / f"interactive_{parsed.bundle}.json", content)
    # the middle one: neither the best nor the worst
    last = _title(max(parsed.clicks))
    shown = sorted(objects, key=lambda o: o.dice[last])[len(objects) // 2]
    draw(shown, parsed.output / f"interactive_{parsed.bundle}.png")
    patients = len({o.case for o in objects})
    print(
        f"Dice (mean ± standard deviation over objects) of {len(objects)} objects, each class of {patients} unseen "
        f"cases on the slice where it is largest, seed {parsed.seed}:\n\n{table(found)}\n{content['machine']}. "
        f"In {parsed.output}"
    )


if __name__ == "__main__":
    main()
