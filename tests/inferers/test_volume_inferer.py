"""A 3-D network on whole volumes."""

import pytest
import torch
from monai.data import MetaTensor

from medsaga.inferers import VolumeInferer


def two_classes(x):
    """Brighter than a half or not."""
    return torch.cat([0.5 - x, x - 0.5], dim=1)


def test_class_numbers_lie_on_the_image():
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 1, 13, 9, 20), affine=affine)
    found = VolumeInferer((8, 8, 8), sw_batch_size=2, overlap=0.5, mode="gaussian")(image, two_classes)
    assert found.dtype == torch.uint8 and torch.equal(found.affine, affine)
    assert torch.equal(found.as_tensor(), (image.as_tensor() > 0.5).to(torch.uint8))


def test_an_image_is_refused():
    with pytest.raises(ValueError, match="3-D network takes volumes"):
        VolumeInferer((8, 8, 8))(torch.rand(1, 1, 8, 8), two_classes)
