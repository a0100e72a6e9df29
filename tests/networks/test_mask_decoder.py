import pytest
import torch

from medsaga.networks import ClassMaskDecoder

GRID = 4


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return ClassMaskDecoder(num_classes=4).eval()


def inputs(images, prompts, points=2):
    torch.manual_seed(1)
    return {
        "image_embeddings": torch.randn(images, 256, GRID, GRID),
        "image_pe": torch.randn(1, 256, GRID, GRID),
        "sparse_prompt_embeddings": torch.randn(prompts, points, 256),
        "dense_prompt_embeddings": torch.randn(prompts, 256, GRID, GRID),
    }


@pytest.mark.parametrize("points", [0, 2])
def test_four_classes_with_sams_weights_are_sams_four_masks(sam, points):
    ours = ClassMaskDecoder(num_classes=4)
    ours.load_state_dict(sam.mask_decoder.state_dict())
    given = inputs(1, 3, points)
    with torch.no_grad():
        expected, _ = sam.mask_decoder.predict_masks(**given)
        torch.testing.assert_close(ours(**given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 4, 7])
@pytest.mark.parametrize("images, prompts, batch", [(1, 1, 1), (3, 1, 3), (1, 3, 3), (3, 3, 3)])
def test_one_mask_per_class_and_image_or_prompt(num_classes, images, prompts, batch):
    masks = ClassMaskDecoder(num_classes)(**inputs(images, prompts))
    assert masks.shape == (batch, num_classes, 4 * GRID, 4 * GRID)


@pytest.mark.parametrize("images, prompts", [(3, 1), (1, 3), (3, 3)])
def test_a_batch_equals_its_items(decoder, images, prompts):
    given = inputs(images, prompts)
    with torch.no_grad():
        together = decoder(**given)
        for i in range(3):
            one = {
                key: value[[i]] if key != "image_pe" and len(value) == 3 else value[:1] for key, value in given.items()
            }
            torch.testing.assert_close(together[[i]], decoder(**one), rtol=1e-5, atol=1e-5)


def test_prompts_that_fit_no_image_are_refused(decoder):
    with pytest.raises(ValueError, match="2 prompt sets for 3 images"):
        decoder(**inputs(3, 2))
