import pytest
import torch
from monai.transforms import RandFlipd

from medsaga.transforms import RandMirrord

KEYS = ["image", "label"]


def slice_of(**more):
    values = torch.arange(12.0).reshape(1, 3, 4)
    return {"image": values, "label": values.to(torch.uint8), **more}


@pytest.mark.parametrize("plane", [{}, {"plane": "axial"}, {"plane": "coronal"}])
def test_columns_are_mirrored_as_monai_does(plane):
    ours, theirs = RandMirrord(KEYS, 0.5), RandFlipd(KEYS, 0.5, spatial_axis=1)
    mirrored = 0
    for seed in range(20):
        results = [flip.set_random_state(seed=seed)(slice_of(**plane)) for flip in (ours, theirs)]
        for key in KEYS:
            assert torch.equal(*(torch.as_tensor(result[key]) for result in results))
        mirrored += not torch.equal(torch.as_tensor(results[0]["image"]), slice_of()["image"])
    assert 0 < mirrored < 20


def test_front_and_back_of_sagittal_slices_are_not_exchanged():
    data = slice_of(plane="sagittal")
    out = RandMirrord(KEYS, 1.0)(data)
    assert all(torch.equal(out[key], data[key]) for key in data if key != "plane") and out["plane"] == "sagittal"
