from __future__ import annotations

import numpy as np
import pytest
import torch

from medsaga.losses import LogitResolutionDiceCELoss, LogitResolutionDiceFocalLoss

from .test_dice_ce import example, terms


def focal(logits, target, gamma=2.0):
    """Mean over pixels and classes of −(1 − p)^γ log p, p of the right answer of each class against the others."""
    logits, target = logits.double().numpy(), target[:, 0].numpy()
    p = 1 / (1 + np.exp(-logits))
    g = np.stack([target == c for c in range(logits.shape[1])], axis=1)
    right = np.where(g, p, 1 - p)
    return -((1 - right) ** gamma * np.log(right)).mean()


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_is_the_sum_of_its_definition(classes):
    logits, target = example(classes=classes)
    _, dice = terms(logits, target)
    assert float(LogitResolutionDiceFocalLoss()(logits, target)) == pytest.approx(
        dice + focal(logits, target), rel=1e-5
    )


def test_one_pixel_by_hand():
    """Logits 0 and log 3 of two classes: sigmoids 1/2 and 3/4, softmax 1/4 and 3/4; the second is right."""
    logits = torch.tensor([0.0, np.log(3)], dtype=torch.float32).view(1, 2, 1, 1)
    target = torch.ones(1, 1, 1, 1, dtype=torch.uint8)
    focal_term = -(0.5**2 * np.log(0.5) + 0.25**2 * np.log(0.75)) / 2
    dice_term = ((1 - 0) + (1 - 2 * 0.75 / (0.75**2 + 1))) / 2
    assert float(LogitResolutionDiceFocalLoss()(logits, target)) == pytest.approx(focal_term + dice_term, rel=1e-3)


@pytest.mark.parametrize(("size", "target_size"), [(4, 16), (4, 14), (7, 28)])
def test_label_map_is_taken_to_the_logits_by_nearest_neighbour(size, target_size):
    logits, target = example(size=size, target_size=target_size)
    nearest = ((np.arange(size) + 0.5) * target_size / size).astype(int)
    reduced = target[:, :, nearest][:, :, :, nearest]
    loss = LogitResolutionDiceFocalLoss()
    assert torch.equal(loss(logits, target), loss(logits, reduced))


def test_its_dice_term_is_that_of_dice_and_cross_entropy():
    logits, target = example()
    dice = LogitResolutionDiceCELoss(lambda_ce=0)(logits, target)
    torch.testing.assert_close(LogitResolutionDiceFocalLoss(lambda_focal=0)(logits, target), dice)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_single_precision(dtype):
    logits, target = example(size=64, target_size=64)
    half = logits.to(dtype)
    loss = LogitResolutionDiceFocalLoss()(half, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, LogitResolutionDiceFocalLoss()(half.float(), target))


@pytest.mark.parametrize("value", [0, 2])
def test_gradient_is_finite_where_classes_are_absent(value):
    logits, target = example()
    logits = (50 * logits).requires_grad_()
    loss = LogitResolutionDiceFocalLoss()(logits, torch.full_like(target, value))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0
