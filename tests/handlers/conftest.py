"""An evaluation whose predictions are known: images that show their own label map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import nn

from medsaga.inferers import SliceBatchInferer

NUM_CLASSES = 3


class ReadsClasses(nn.Module):
    """Intensity c / 2 is class c."""

    def forward(self, images):
        level = images.mean(dim=1, keepdim=True)
        return torch.cat([-((level - c / 2) ** 2) for c in range(NUM_CLASSES)], dim=1)


def _case(name: str, pred: np.ndarray, label: np.ndarray, spacing: tuple = (1, 1, 1), channels: int = 1) -> dict:
    meta, affine = {"filename_or_obj": f"/data/{name}"}, torch.diag(torch.tensor([*spacing, 1.0]))
    image = torch.tensor(pred / 2, dtype=torch.float32).expand(channels, *pred.shape)
    return {
        "image": MetaTensor(image.clone(), affine=affine, meta=dict(meta)),
        "label": MetaTensor(torch.tensor(label, dtype=torch.uint8)[None], affine=affine, meta=dict(meta)),
    }


@pytest.fixture(scope="session")
def case() -> Callable[..., dict]:
    """Makes a case of which ``pred`` will be predicted."""
    return _case


@pytest.fixture(scope="session")
def evaluator() -> Callable[..., SupervisedEvaluator]:
    """Makes MONAI's evaluator over cases."""

    def make(cases: list[dict], *handlers) -> SupervisedEvaluator:
        return SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases), batch_size=1),
            network=ReadsClasses(),
            inferer=SliceBatchInferer(16),
            val_handlers=list(handlers),
        )

    return make
