from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medsaga.active_learning import image_embedding
from medsaga.networks import SamSegmenter

SIZE = 64


def test_embedding_is_the_mean_over_cells_and_slices():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", SIZE, 3).eval()
    image = MetaTensor(torch.rand(1, SIZE, SIZE, 5))
    with torch.no_grad():
        slices = [network.encode(image.as_tensor()[None, ..., i]).mean(dim=(0, 2, 3)) for i in range(5)]
    found = image_embedding(network.encode, image, SIZE, batch_size=2)
    assert found.shape == (256,) and not isinstance(found, MetaTensor)
    torch.testing.assert_close(found, torch.stack(slices).mean(dim=0), rtol=1e-4, atol=1e-5)
    flat = image_embedding(network.encode, image[..., 0], SIZE)
    torch.testing.assert_close(flat, slices[0], rtol=1e-4, atol=1e-5)


def test_padding_is_left_out():
    def encode(images):  # four cells; those below are padding where the image is half as high as wide
        cells = torch.tensor([[1.0, 3.0], [100.0, 100.0]])
        return cells.expand(len(images), 256, 2, 2)

    assert image_embedding(encode, torch.rand(1, 8, 16, 2), 16).unique().tolist() == [2.0]


def test_similar_images_are_near():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", SIZE, 3).eval()
    bright, dark = (torch.rand(1, SIZE, SIZE) * 0.2 + level for level in (0.8, 0.0))
    a, b, c = (image_embedding(network.encode, x, SIZE) for x in (bright, (bright + 0.01).clamp(0, 1), dark))
    assert (a - b).norm() < 0.2 * (a - c).norm()


def test_a_matrix_of_numbers_is_no_image():
    with pytest.raises(ValueError, match="must be"):
        image_embedding(lambda x: x, torch.rand(8, 8), 8)
