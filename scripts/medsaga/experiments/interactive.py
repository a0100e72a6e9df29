"""``python -m medsaga.experiments.interactive``: Dice with 1, 2, 3, 5 and 10 clicks and with a box, on unseen patients.

An annotator who knows the truth clicks on the middle of an object. Each further click is on the middle of the largest
region where the mask for all clicks so far is wrong. The masks are those that the app answers, or with ``--own`` the
network's own.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.bundle import ConfigParser
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.bundle.network import load_network
from medsaga.data import evaluation_parts, training_parts
from medsaga.files import write_json
from medsaga.machine import describe_machine
from medsaga.memory import Setup
from medsaga.networks import PUBLISHED, load_weights
from medsaga.reading import name_without_suffix

from .annotator import GOOD_ENOUGH
from .overrides import override
from .prompting import Object, prompted, title

__all__ = ["main"]

_LOSS = 0.02  # of Dice, from which on a click has made the mask worse


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


def sequences(objects: Sequence[Object]) -> dict[str, float]:
    """How the sequences of clicks without a box went on, beyond the table's means."""
    steps = np.array([o.steps for o in objects])
    good = np.where((steps >= GOOD_ENOUGH).any(axis=1), (steps >= GOOD_ENOUGH).argmax(axis=1) + 1, np.inf)
    losses = np.diff(steps, axis=1) < -_LOSS
    return {
        "clicks on the wrong side": sum(o.wrong for o in objects),
        f"sequences with a click that loses more than {_LOSS}": float(losses.any(axis=1).mean()),
        f"clicks to Dice {GOOD_ENOUGH}, median": float(np.median(good)),
    }


def draw(shown: Object, path: Path) -> None:
    """Image and reference, then the mask under each prompt with its clicks (+ inside, × outside) or its box."""
    panels = [("reference", shown.truth), *shown.masks.items()]
    figure = Figure(figsize=(2.4 * len(panels), 3), dpi=100, layout="constrained")
    for axes, (prompt, mask) in zip(figure.subplots(1, len(panels)), panels):
        axes.imshow(shown.pixels, cmap="gray", vmin=0, vmax=1)
        axes.imshow(np.ma.masked_equal(mask, 0), cmap="autumn", alpha=0.45)
        axes.set_title(prompt if prompt == "reference" else f"{prompt}: {shown.dice[prompt]:.3f}", fontsize=9)
        axes.set_axis_off()
        if prompt[0].isdigit():
            for row, column, inside in shown.clicks[: int(prompt.split()[0])]:
                axes.plot(column, row, "+" if inside else "x", color="lime" if inside else "cyan", markersize=7)
        if prompt.startswith("box"):
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


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers of clicks must be at least 1")
    return numbers


def main(arguments: list[str] | None = None) -> None:
    """Prompt the test patients' largest slices; print the table, write figures' values and a picture."""
    parser = argparse.ArgumentParser(description="Measure Dice with clicks and with a box on unseen patients.")
    parser.add_argument("--bundle", default="hippocampus", help="default: %(default)s")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset_dir", type=Path, help="folder of the bundle's data")
    data.add_argument("--image", type=Path, help="or one image, preprocessed like the bundle's; needs --label")
    parser.add_argument("--label", type=Path, help="label of --image, with the values of --override class_names=[...]")
    parser.add_argument("--model", type=Path, help="trained weights (default: the bundle's models/model.pt)")
    parser.add_argument(
        "--weights",
        choices=PUBLISHED,
        help="published weights as they are, at the size they were trained at, instead of --model",
    )
    parser.add_argument("--overlay", nargs="+", default=[], help="overlays of bundles/methods used in training: msa")
    parser.add_argument("--override", type=override, nargs="+", default=[], metavar="KEY=VALUE", help="config values")
    parser.add_argument("--clicks", type=_numbers, default=[1, 2, 3, 5, 10], help="default: 1,2,3,5,10")
    parser.add_argument("--own", action="store_true", help="score the network's own masks, not the app's answers")
    parser.add_argument(
        "--slices", type=int, choices=(1, 3), default=1, help="slices of each class and case (default: 1)"
    )
    parser.add_argument("--pixels", type=int, default=1, help="leave out objects with fewer on a slice (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, if the model names none (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("output/interactive"), help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    if (parsed.image is None) != (parsed.label is None):
        parser.error("--image and --label must be given together")

    bundle = Path(find_bundle(parsed.bundle))
    overlays = tuple(str(bundle.parent / "methods" / f"{name}.json") for name in parsed.overlay)
    own = {"dataset_dir": str(parsed.dataset_dir), "seed": parsed.seed, "weights": None}
    config = Setup(str(bundle), overlays, {**dict(parsed.override), **own}).parser()
    model = parsed.model or bundle / "models" / "model.pt"
    if parsed.weights:
        network, head = load_network(weights=parsed.weights)
    else:
        head = "classes"
        network = config.get_parsed_content("network_def")
        load_weights(network, model, trained=True)
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    class_names = config.get_parsed_content("class_names")
    depth = (not parsed.weights and (config.get("network_def").get("adapters") or {}).get("depth")) or 1
    if depth > 1 and not parsed.own:
        parser.error("the app cannot serve a network of neighbouring slices: add --own")

    objects: list[Object] = []
    preprocessing = config.get_parsed_content("preprocessing")
    if parsed.image:
        cases = [{"image": str(parsed.image), "label": str(parsed.label)}]
    else:
        cases = _test_cases(config, None if parsed.weights else model)
    for case in tqdm(cases, unit="case"):
        prepared = preprocessing({key: case[key] for key in ("image", "label")})
        name = name_without_suffix(case["image"])
        given = (class_names, parsed.clicks, depth, head, not parsed.own, parsed.slices, parsed.pixels)
        objects += prompted(network, prepared, name, *given)
    if not objects:
        raise ValueError(f"None of the cases in {parsed.dataset_dir or parsed.image} shows a class.")
    found, clicking = summary(objects), sequences(objects)
    words = arguments if arguments is not None else sys.argv[1:]
    content = {
        "dice": found,
        "sequences": clicking,
        "objects": [
            {"case": o.case, "class": o.name, "slice": o.index, "dice": o.dice, "steps": o.steps, "clicks": o.clicks}
            for o in objects
        ],
        "seed": parsed.seed,
        "command": f"python -m medsaga.experiments.interactive {shlex.join(words)}",
        "machine": describe_machine(str(network.pixel_mean.device)),
    }
    write_json(parsed.output / f"interactive_{parsed.bundle}.json", content)
    # the middle one: neither the best nor the worst
    last = title(max(parsed.clicks))
    shown = sorted(objects, key=lambda o: o.dice[last])[len(objects) // 2]
    draw(shown, parsed.output / f"interactive_{parsed.bundle}.png")
    patients = len({o.case for o in objects})
    where = f"{'case' if parsed.image else 'unseen cases'} on the slice where it is largest"
    where += " and a quarter of its extent from either end" if parsed.slices > 1 else ""
    print(
        f"Dice (mean ± standard deviation over objects) of {len(objects)} objects, each class of {patients} {where}, "
        f"seed {parsed.seed}:\n\n{table(found)}\n"
        + "".join(f"{what}: {value:g}\n" for what, value in clicking.items())
        + f"{content['machine']}. In {parsed.output}"
    )


if __name__ == "__main__":
    main()
