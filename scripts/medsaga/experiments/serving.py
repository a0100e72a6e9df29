"""How long an annotator waits: ``python -m medsaga.experiments.serving --ct CT.nii.gz``.

Starts the app's server on copies of two bundles and measures, through its REST interface and on an otherwise idle
machine, what people wait for: the server itself, the first click on an image and the further ones, automatic
segmentation, and a training's first step.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from medsaga.bundle import find_bundle
from medsaga.data import write_decathlon_phantoms
from medsaga.machine import describe_machine

from .bundle_copy import copy_bundle
from .label_server import LabelServer

__all__ = ["main"]

# the spleen bundle with LiteMedSAM's encoder, which a machine without a GPU can click with
_LITE = {"network_def#encoder": "vit_t", "image_size": 256, "weights": "lite_medsam"}
_SIDE = 512
_FURTHER = 10


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure how long an annotator waits for the server.")
    parser.add_argument("--ct", type=Path, required=True, help="CT volume to segment, NIfTI")
    parser.add_argument("--app", type=Path, default=Path("monailabel_app"), help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("output/serving"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/serving.md"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    rows: list[tuple[str, str]] = []
    with tqdm(total=3, desc="Serving") as progress:
        rows += _clicks(arguments.app, work / "clicks", arguments.ct)
        progress.update()
        rows += _automatic(arguments.app, work / "automatic", arguments.ct)
        progress.update()
        rows += _training(arguments.app, work / "training")
        progress.update()
    table = "\n".join(["| What | Seconds |", "|---|---|", *(f"| {what} | {seconds} |" for what, seconds in rows)])
    text = (
        "# What an annotator waits for\n\n"
        "From request to mask, over HTTP on the same machine, which did nothing else.\n\n"
        f"{table}\n\n{describe_machine('cpu')}. `python -m medsaga.experiments.serving --ct CT.nii.gz`. The "
        f"CT has {' × '.join(map(str, nib.load(arguments.ct).shape))} voxels.\n"
    )
    arguments.output.write_text(text)
    print(text)


def _clicks(app: Path, work: Path, ct: Path) -> Iterable[tuple[str, str]]:
    """Clicks on 512 × 512 slices, with published weights and with a trained bundle's."""
    bundle = copy_bundle(find_bundle("spleen"), work / "spleen", _LITE)
    studies = work / "studies"
    studies.mkdir(parents=True)
    nib.save(_enlarged(ct), studies / "ct.nii.gz")
    depth = nib.load(studies / "ct.nii.gz").shape[2]
    with _server(app, studies, bundle) as (server, ready):
        yield "server ready", f"{ready:.1f}"
        yield from _click_rows(server, depth, "published weights")
    _fresh_weights(bundle)
    with _server(app, studies, bundle) as (server, _):
        yield from _click_rows(server, depth, "a trained bundle's weights")


def _click_rows(server: LabelServer, depth: int, weights: str) -> Iterable[tuple[str, str]]:
    middle, name = depth // 2, f"{server.model}_prompt"
    centre = _SIDE // 2
    first = _seconds(lambda: server.infer(name, "ct", foreground=[[centre, centre, middle]]))
    objects = [[centre + 3 * i, centre - 5 * i, middle] for i in range(_FURTHER)]
    other = [_seconds(lambda at=at: server.infer(name, "ct", foreground=[at])) for at in objects]
    around = [
        [round(centre + 8 * i * np.cos(i)), round(centre + 8 * i * np.sin(i)), middle] for i in range(_FURTHER + 1)
    ]
    further = [
        _seconds(lambda i=i: server.infer(name, "ct", foreground=around[: i + 1 : 2], background=around[1 : i + 1 : 2]))
        for i in range(1, _FURTHER + 1)
    ]
    time.sleep(15)  # an annotator looks; the slices around are embedded meanwhile
    next_slice = [
        _seconds(lambda i=i: server.infer(name, "ct", foreground=[[centre, centre, middle + i]])) for i in (1, 2, 3)
    ]
    where = f"{_SIDE}×{_SIDE} CT slice, `vit_t`, {weights}"
    yield f"first click on a volume of {depth} slices: {where}", f"{first:.2f}"
    yield f"further clicks on the object, median of {_FURTHER} (longest): {where}", _median(further)
    yield f"first clicks on other objects of the slice, median (longest): {where}", _median(other)
    yield f"first click on one of the next three slices, median (longest): {where}", _median(next_slice)


def _automatic(app: Path, work: Path, ct: Path) -> Iterable[tuple[str, str]]:
    """Automatic segmentation, by number of slices and by encoder."""
    image = nib.load(ct)
    small = {**_LITE, "image_size": 128}
    encoders = {"vit_t at 128 px": small, "vit_t at 256 px": _LITE, "vit_b at 512 px": {"weights": None}}
    for encoder, options in encoders.items():
        folder = work / encoder.replace(" ", "_")
        bundle = copy_bundle(find_bundle("spleen"), folder / "spleen", options)
        _fresh_weights(bundle)
        studies = folder / "studies"
        studies.mkdir(parents=True)
        depths = [image.shape[2] // 8, image.shape[2] // 4]
        if encoder.startswith("vit_t"):
            depths.append(image.shape[2])
        for depth in depths:
            nib.save(image.slicer[:, :, :depth], studies / f"slices{depth}.nii.gz")
        with _server(app, studies, bundle) as (server, _):
            server.infer(server.model, f"slices{depths[0]}")  # the network is loaded
            for depth in depths:
                taken = _seconds(lambda depth=depth: server.infer(server.model, f"slices{depth}"))
                yield f"automatic segmentation of {depth} slices of the CT, {encoder}", f"{taken:.1f}"


def _training(app: Path, work: Path) -> Iterable[tuple[str, str]]:
    """A volume of the hippocampus bundle's size, and a training on two of them."""
    bundle = copy_bundle(find_bundle("hippocampus"), work / "hippocampus", {})
    _fresh_weights(bundle)
    phantoms = write_decathlon_phantoms(work / "phantoms", cases=3, shape=(35, 50, 35))
    studies = work / "studies"
    shutil.copytree(phantoms / "imagesTr", studies)
    with _server(app, studies, bundle) as (server, _):
        names = sorted(path.name for path in studies.glob("*.nii.gz"))
        images = [name.removesuffix(".nii.gz") for name in names]
        taken = [_seconds(lambda image=image: server.infer(server.model, image)) for image in images]
        yield "automatic segmentation of a volume of 35×50×35, the first (network loaded)", f"{taken[0]:.1f}"
        yield "automatic segmentation of a volume of 35×50×35, others", f"{statistics.median(taken[1:]):.1f}"
        for image in images[:2]:
            server.save_label(image, phantoms / "labelsTr" / f"{image}.nii.gz")
        yield "from a train request to the first optimizer step", f"{server.first_step():.1f}"


def _fresh_weights(bundle: Path) -> None:
    """Weights of the bundle's network as they are before training: time does not depend on them."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")


def _enlarged(ct: Path) -> nib.Nifti1Image:
    """The CT with slices of 512 × 512, each voxel repeated."""
    image = nib.load(ct)
    voxels = np.asarray(image.dataobj).astype(np.int16)
    rows, columns = (np.arange(_SIDE) * n // _SIDE for n in voxels.shape[:2])
    scale = np.diag([voxels.shape[0] / _SIDE, voxels.shape[1] / _SIDE, 1, 1])
    return nib.Nifti1Image(voxels[rows][:, columns], image.affine @ scale)


@contextmanager
def _server(app: Path, studies: Path, bundle: Path) -> Iterator[tuple[LabelServer, float]]:
    """A server, and the seconds until it answered."""
    start = time.perf_counter()
    with LabelServer(app.absolute(), studies, bundle, bundle.parent / "server.log") as server:
        yield server, time.perf_counter() - start


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({max(seconds):.2f})"


if __name__ == "__main__":
    main()
