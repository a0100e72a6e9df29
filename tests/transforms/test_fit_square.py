from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from PIL import Image

from medsaga.transforms import FitSquared, fit_square, undo_fit_square

SIZE = 112
# slice → what of the square it fills
SHAPES = [
    ((35, 50), (78, 112)),
    ((50, 35), (112, 78)),
    ((224, 224), (112, 112)),
    ((112, 112), (112, 112)),
    ((300, 17), (112, 6)),
    ((17, 300), (6, 112)),
    ((1000, 1), (112, 1)),
    ((113, 111), (112, 110)),
]
ODD_SHAPES = [shape for shape, _ in SHAPES if min(shape) > 1]


def blob(shape, centre=(0.45, 0.6), width=0.12):
    """A Gaussian, as wide as its slice is in each direction."""
    rows, columns = (np.exp(-(((np.arange(n) + 0.5) / n - c) ** 2) / 2 / width**2) for n, c in zip(shape, centre))
    return torch.tensor(np.outer(rows, columns), dtype=torch.float32)[None, None]


def centre_of_mass(image):
    grids = np.meshgrid(*[np.arange(n) for n in image.shape[-2:]], indexing="ij")
    weights = image.squeeze().numpy()
    return np.array([(grid * weights).sum() / weights.sum() for grid in grids])


@pytest.mark.parametrize(("shape", "filled"), SHAPES)
def test_longer_side_fits_and_the_rest_is_zero_at_the_bottom_and_right(shape, filled):
    fitted = fit_square(torch.ones(2, 3, *shape), SIZE)
    expected = torch.zeros(2, 3, SIZE, SIZE)
    expected[..., : filled[0], : filled[1]] = 1
    assert torch.allclose(fitted, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(35, 50), (224, 224), (300, 40), (113, 111)])
def test_interpolation_is_that_of_pillow(shape):
    """Bilinear, antialiased where it shrinks."""
    image = np.random.RandomState(0).uniform(size=shape).astype(np.float32)
    fitted = fit_square(torch.tensor(image)[None, None], SIZE)[0, 0]
    rows, columns = (round(n * SIZE / max(shape)) for n in shape)
    reference = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    assert np.abs(fitted[:rows, :columns].numpy() - reference).max() < 1e-4


def triangle_weights(length, new_length):
    """Pillow's bilinear filter as a matrix, in float64: a triangle, as wide as a new pixel where these are larger."""
    scale = length / new_length
    centres = (np.arange(new_length)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centres) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def resized(images, shape):
    weights = [triangle_weights(n, m) for n, m in zip(images.shape[-2:], shape)]
    return np.einsum("ih,bchw,jw->bcij", weights[0], images.double().numpy(), weights[1])


SHORT, LONG = (1, 2, 3, 5), (1, 2, 5, 20, 40, 56, 57, 200)
NARROW = sorted({shape for a in SHORT for b in LONG for shape in ((a, b), (b, a))})
# as they are, as columns of a picture, cut from a larger one, of a volume, channels last
LAYOUTS = {
    "contiguous": lambda b, c, h, w: torch.rand(b, c, h, w),
    "transposed": lambda b, c, h, w: torch.rand(b, c, w, h).mT,
    "cut": lambda b, c, h, w: torch.rand(b, c, h + 3, w + 2)[..., :h, :w],
    "volume": lambda b, c, h, w: torch.rand(c, h, w, b).permute(3, 0, 1, 2),
    "channels last": lambda b, c, h, w: torch.rand(b, c, h, w).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("batch", [(1, 1), (5, 1), (2, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_narrow_slices_are_scaled_as_by_the_filter_in_float64(layout, batch):
    """torch's own antialiasing mixes up the rows of results one column wide."""
    torch.manual_seed(0)
    for shape in NARROW:
        images = LAYOUTS[layout](*batch, *shape)
        expected = np.zeros((*batch, 56, 56))
        rows, columns = (max(1, round(n * 56 / max(shape))) for n in shape)
        expected[..., :rows, :columns] = resized(images, (rows, columns))
        assert np.abs(fit_square(images, 56).numpy() - expected).max() < 1e-5
        logits = LAYOUTS[layout](*batch, 56, 56)
        back = undo_fit_square(logits, 56, shape)
        assert back.shape == (*batch, *shape)
        assert np.abs(back.numpy() - resized(logits[..., :rows, :columns], shape)).max() < 1e-5


@pytest.mark.parametrize("shape", [shape for shape in (*NARROW, (40, 20)) if min(shape) > 2])
def test_where_torch_is_right_it_is_used(shape):
    image, logits = torch.rand(2, 1, *shape), torch.rand(2, 3, 56, 56)
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    rows, columns = (max(1, round(n * 56 / max(shape))) for n in shape)
    if columns > 1:
        reference = F.interpolate(image, size=(rows, columns), **options)
        assert torch.equal(fit_square(image, 56)[..., :rows, :columns], reference)
        reference = F.interpolate(logits[..., :rows, :columns], size=shape, **options)
        assert torch.equal(undo_fit_square(logits, 56, shape), reference)


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (300, 1), (200, 2)])
def test_object_in_a_slice_one_pixel_wide_comes_back(shape):
    image = torch.zeros(1, 1, *shape)
    length = max(shape)
    image.view(length, -1)[length // 4 : length // 2] = 1
    back = undo_fit_square(fit_square(image, SIZE), SIZE, shape) > 0.5
    assert torch.equal(back, image > 0.5)


@pytest.mark.parametrize("label", [False, True])
def test_slice_of_the_right_size_is_left_as_it_is(label):
    image = torch.randint(0, 4, (2, 1, SIZE, SIZE)).to(torch.uint8) if label else torch.rand(2, 1, SIZE, SIZE)
    assert torch.equal(fit_square(image, SIZE, label=label), image)
    assert torch.equal(undo_fit_square(image, SIZE, (SIZE, SIZE)), image.float())


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_labels_stay_class_numbers(shape):
    label = torch.tensor(np.random.RandomState(0).choice([0, 2, 7], size=(1, 1, *shape)), dtype=torch.uint8)
    fitted = fit_square(label, SIZE, label=True)
    assert fitted.dtype == torch.uint8
    assert set(fitted.unique().tolist()) == {0, 2, 7}


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("logit_size", [SIZE, SIZE // 4])
def test_smooth_image_comes_back_in_place(shape, logit_size):
    image = blob(shape)
    fitted = fit_square(image, SIZE)
    # a network whose output is its input, at its own resolution
    logits = F.interpolate(fitted, size=(logit_size, logit_size), mode="area")
    back = undo_fit_square(logits, SIZE, shape)
    assert back.shape == image.shape
    narrow = min(shape) / max(shape) * logit_size  # pixels across the slice's shorter side
    if narrow > 20:
        assert (back - image).abs().max() < 0.03
        assert np.abs(centre_of_mass(back) - centre_of_mass(image)).max() < 0.5
    else:  # a strip of a few pixels
        shift = (centre_of_mass(back) - centre_of_mass(image)) / shape
        assert np.abs(shift).max() < 0.5 / narrow


@pytest.mark.parametrize("shape", [s for s in ODD_SHAPES if min(s) > 17])
def test_centre_of_mass_moves_with_the_scale(shape):
    fitted = fit_square(blob(shape), SIZE)
    expected = [(c + 0.5) * round(n * SIZE / max(shape)) / n - 0.5 for c, n in zip(centre_of_mass(blob(shape)), shape)]
    assert np.abs(centre_of_mass(fitted) - expected).max() < 0.1


@pytest.mark.parametrize("shape", [s for s in ODD_SHAPES if min(s) > 17])
def test_label_comes_back(shape):
    label = (blob(shape) > 0.3).to(torch.uint8) + (blob(shape, centre=(0.5, 0.65)) > 0.5).to(torch.uint8)
    fitted = fit_square(label, SIZE, label=True)
    logits = F.one_hot(fitted[:, 0].long(), 3).movedim(-1, 1)
    back = undo_fit_square(logits, SIZE, shape).argmax(1, keepdim=True)
    for c in (1, 2):
        overlap = 2 * ((back == c) & (label == c)).sum() / ((back == c).sum() + (label == c).sum())
        assert overlap > 0.95


def test_transform_fits_image_and_label_of_one_slice():
    image, label = torch.rand(3, 35, 50), torch.randint(0, 3, (1, 35, 50)).to(torch.uint8)
    data = {"image": MetaTensor(image), "label": MetaTensor(label), "name": "x"}
    out = FitSquared(["image", "label"], SIZE)(data)
    assert torch.equal(out["image"], fit_square(image[None], SIZE)[0])
    assert torch.equal(out["label"], fit_square(label[None], SIZE, label=True)[0])
    assert out["label"].dtype == torch.uint8
    assert not isinstance(out["image"], MetaTensor)
    assert out["name"] == "x"
    assert data["image"].shape == (3, 35, 50)


@pytest.mark.parametrize("label_keys", ["mask", ("mask",)])
def test_transform_takes_other_label_keys(label_keys):
    mask = torch.tensor([[[0, 2], [2, 0]]], dtype=torch.uint8)
    out = FitSquared("mask", 7, label_keys=label_keys)({"mask": mask})
    assert set(out["mask"].unique().tolist()) == {0, 2}


def test_missing_key_is_an_error():
    with pytest.raises(KeyError):
        FitSquared(["image", "label"], SIZE)({"image": torch.rand(1, 4, 4)})
