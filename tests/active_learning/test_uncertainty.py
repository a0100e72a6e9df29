from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from scipy.stats import entropy

from medsaga.active_learning import disagreement, mean_entropy, unsure_pixels
from medsaga.networks import SamSegmenter

SIZE = 32


def by_brightness(images: torch.Tensor) -> torch.Tensor:
    """Logits (b, 3, S, S) that depend on a pixel's intensity alone, so each pixel's entropy is known."""
    return torch.cat([torch.zeros_like(images), 3 * images, -images], dim=1)


def disc(size: int = SIZE) -> torch.Tensor:
    """A white disc off the centre on black, (1, S, S)."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((rows - 0.4 * size) ** 2 + (columns - 0.6 * size) ** 2 < (size / 5) ** 2).float()[None]


@pytest.mark.parametrize("shape", [(1, SIZE, SIZE), (1, SIZE, SIZE, 5), (1, SIZE, 20, 5), (1, 12, SIZE)])
def test_entropy_is_scipys_weighted_by_foreground_without_the_padding(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    logits = by_brightness(image[None])[0].double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = np.average(entropy(p, axis=0, base=3), weights=1 - p[0])
    assert mean_entropy(by_brightness, image, SIZE, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_unsure_pixels_are_scipys_entropy_summed_over_a_slice():
    logits = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    expected = (entropy(p, axis=1, base=4) * (1 - p[:, 0])).sum(axis=(1, 2))
    np.testing.assert_allclose(unsure_pixels(logits).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("score", [mean_entropy, disagreement])
def test_sure_background_changes_nothing(score):
    def network(images):  # sees only what is brighter than 0.2, and is not sure of it
        return torch.cat([40 * (0.3 - images), images, 0.5 - images], dim=1)

    image = 0.8 * disc()
    wide = torch.nn.functional.pad(image, (16, 16, 16, 16))
    assert score(network, image, SIZE) > 0
    assert score(network, wide, 64) == pytest.approx(score(network, image, SIZE), rel=0.1)
    assert wide.numel() == 4 * image.numel()


def test_entropy_of_no_and_of_full_doubt():
    image = torch.rand(1, SIZE, SIZE, 3)
    assert mean_entropy(lambda x: torch.zeros(len(x), 4, 8, 8), image, SIZE) == pytest.approx(1)
    sure = torch.tensor([100.0, 0, 0]).view(1, 3, 1, 1)
    assert mean_entropy(lambda x: sure.expand(len(x), 3, 8, 8), image, SIZE) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("score", [mean_entropy, disagreement])
def test_batches_change_nothing_and_are_small(score):
    image = torch.rand(1, SIZE, 20, 7, generator=torch.Generator().manual_seed(1))
    sizes = []

    def network(images):
        sizes.append(len(images))
        return by_brightness(images)

    whole = score(by_brightness, image, SIZE, batch_size=7)
    assert score(network, image, SIZE, batch_size=3) == pytest.approx(whole, rel=1e-6)
    assert max(sizes) == 3


def test_a_long_volume_is_looked_at_in_evenly_spaced_slices():
    # each slice's number is its intensity
    image = (torch.arange(100) / 100).expand(1, SIZE, SIZE, 100)
    seen = set()

    def network(images):
        seen.update((images.amax(dim=(1, 2, 3)) * 100).round().int().tolist())
        return by_brightness(images)

    mean_entropy(network, image, SIZE, max_slices=4)
    assert seen == {12, 37, 62, 87}


def test_disagreement_of_known_answers():
    # one answer to each pass: the closed form of mutual information
    answers = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    calls = iter(answers.log())

    def network(images):
        return next(calls).view(1, 3, 1, 1).expand(len(images), 3, 16, 16)

    p = answers.numpy()
    expected = entropy(p.mean(axis=0), base=3) - entropy(p, axis=1, base=3).mean()
    assert disagreement(network, disc(), SIZE, passes=3) == pytest.approx(expected, rel=1e-5)


def test_doubt_that_all_passes_share_is_no_disagreement():
    def doubtful(images):
        return torch.zeros(len(images), 3, SIZE, SIZE)

    assert mean_entropy(doubtful, disc(), SIZE) == pytest.approx(1)
    assert disagreement(doubtful, disc(), SIZE) == pytest.approx(0, abs=1e-6)


def test_answers_are_turned_back():
    def smooth(images):  # turns with the image; black and white are the same at each gamma
        return torch.cat([4 - 8 * F.avg_pool2d(images, 5, 1, 2), torch.zeros_like(images)], dim=1)

    def mirrored(images):  # does not
        return smooth(images.flip(-1)).flip(-1) if next(flip) else smooth(images).flip(-1)

    flip = iter([True, False, True, False])
    assert disagreement(smooth, disc(), SIZE) < 0.05
    assert disagreement(mirrored, disc(), SIZE) > 5 * disagreement(smooth, disc(), SIZE)


def test_contrast_is_altered():
    def threshold(images):  # grey of 0.5: at gamma above 1 one class, below 1 the other
        return torch.cat([100 * (images - 0.5), 100 * (0.5 - images)], dim=1)

    grey, black = torch.full((1, SIZE, SIZE), 0.5), torch.zeros(1, SIZE, SIZE)
    assert disagreement(threshold, grey, SIZE, passes=6) > 0.3
    assert disagreement(threshold, black, SIZE, passes=6) == pytest.approx(0, abs=1e-6)


def test_disagreement_depends_on_seed_only():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", SIZE, 3).eval()
    image = MetaTensor(torch.rand(1, 24, SIZE, 3))
    state = torch.get_rng_state()
    first = disagreement(network, image, SIZE)
    assert torch.equal(state, torch.get_rng_state()), "the global generator belongs to the caller"
    torch.rand(3)
    assert disagreement(network, image, SIZE) == first
    assert disagreement(network, image, SIZE, seed=1) != first
    assert 0 < first < 1 and math.isfinite(first)


def test_bad_arguments_say_what_would_be_right():
    with pytest.raises(ValueError, match="passes=1.*at least 2"):
        disagreement(by_brightness, disc(), SIZE, passes=1)
    with pytest.raises(ValueError, match=r"\(C, H, W, D\)"):
        mean_entropy(by_brightness, torch.zeros(SIZE, SIZE), SIZE)
