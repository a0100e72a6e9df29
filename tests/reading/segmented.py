"""What a bundle's command and the app make of an input: the mask's place and size, or the refusal.

A stand-in network marks what is bright after preprocessing, so that all around the network is what runs for users.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from fastapi import HTTPException
from lib.infers import AutomaticTask
from lib.served_model import ServedModel
from PIL import Image

from medsaga.bundle.errors import root_cause
from medsaga.nifti import write_series
from medsaga.reading import PICTURES, VOLUMES, ReadingError, suffix_of
from tests.integration.bundles import ROOT, run

__all__ = ["Bright", "Outcome", "by_app", "by_bundle"]


class Bright(torch.nn.Module):
    """Class 1 where the preprocessed image is above 0.5, the middle between the block and what is around it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(b, C, S, S) → logits (b, 2, S, S)."""
        above = image.mean(dim=1, keepdim=True) - 0.5
        return torch.cat([-above, above], dim=1)


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    centre: of the mask, in mm, RAS; of a picture's, column and row. None where it is empty.
    size: millilitres; of a picture's, pixels.
    refused: the message, where there is no mask.
    """

    centre: tuple[float, ...] | None = None
    size: float = 0.0
    refused: str | None = None

    def __str__(self) -> str:
        if self.refused is not None:
            return self.refused
        return (
            "an empty mask" if self.centre is None else f"{', '.join(f'{c:.1f}' for c in self.centre)}: {self.size:g}"
        )


def _bundle(picture: bool) -> str:
    return "chest_xray" if picture else "hippocampus"


def _measured(path: Path) -> Outcome:
    if path.suffix == ".png":
        with Image.open(path) as mask:
            rows, columns = np.nonzero(np.asarray(mask))
        return Outcome((float(columns.mean()), float(rows.mean())) if len(rows) else None, len(rows))
    mask = nib.load(path)
    where = np.argwhere(np.asarray(mask.dataobj))
    if mask.ndim == 2:
        return Outcome(tuple(where.mean(axis=0).tolist()) if len(where) else None, len(where))
    ml = len(where) * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    centre = (mask.affine @ [*where.mean(axis=0), 1])[:3] if len(where) else None
    return Outcome(None if centre is None else tuple(centre.tolist()), round(ml, 3))


def by_bundle(path: Path, work: Path, picture: bool = False) -> Outcome:
    """``inference.json`` on one input.

    Args:
        path: file or folder.
        work: folder to write to.
        picture: it is a 2-D image.
    """
    try:
        run(
            "evaluating",
            _bundle(picture),
            "inference",
            network_def={"_target_": f"{__name__}.Bright"},
            initialize=[],
            image_size=48,
            dataset_dir=str(path),
            output_dir=str(work),
        )
    except Exception as error:
        assert not list(work.glob("*_seg.*")), "a mask beside an error"
        return Outcome(refused=str(root_cause(error)))
    outcomes = [_measured(mask) for mask in work.glob("*_seg.*")]
    assert len(set(outcomes)) == 1, "several cases, and not all alike"
    return outcomes[0]


class _Stand(ServedModel):
    """A bundle that serves :class:`Bright`."""

    bright = Bright()

    def network(self, device: str = "cpu", filename: str | None = None) -> torch.nn.Module:
        return self.bright


def by_app(path: Path, work: Path, picture: bool = False) -> Outcome:
    """The app's automatic task on one input, a DICOM series as its datastore fetches and converts it."""
    bundle = work / _bundle(picture)
    shutil.copytree(ROOT / "bundles" / _bundle(picture) / "configs", bundle / "configs")
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").touch()
    inference = bundle / "configs" / "inference.json"
    inference.write_text(json.dumps({**json.loads(inference.read_text()), "image_size": 48}))
    task = AutomaticTask(_Stand(bundle))
    image = path
    try:
        if suffix_of(path) not in (*VOLUMES, *PICTURES):
            image = work / "fetched.nii.gz"
            write_series(path, image)
        file, _ = task({"image": str(image), "device": "cpu", "result_extension": ".nii.gz"})
    except (HTTPException, ReadingError, FileNotFoundError) as error:
        return Outcome(refused=str(getattr(error, "detail", error)))
    outcome = _measured(Path(file))
    Path(file).unlink()
    return outcome
