from __future__ import annotations

import numpy as np
import pytest
import torch

from medsaga.losses import LogitResolutionDiceCELoss


def example(batch=2, classes=3, size=4, target_size=4, seed=0):
    random = np.random.RandomState(seed)
    logits = torch.tensor(random.normal(size=(batch, classes, size, size)), dtype=torch.float32)
    target = torch.tensor(random.randint(0, classes, (batch, 1, target_size, target_size)), dtype=torch.uint8)
    return logits, target


def terms(logits, target):
    """Mean cross entropy, and mean over classes of 1 − (2·Σpg + ε) / (Σp² + Σg² + ε), sums over batch and pixels."""
    logits, target = logits.double().numpy(), target[:, 0].numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    g = np.stack([target == c for c in range(logits.shape[1])], axis=1).astype(float)
    ce = -(g * np.log(p)).sum(axis=1).mean()
    overlap, size = ((x).sum(axis=(0, 2, 3)) for x in (p * g, p**2 + g**2))
    return ce, (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()


@pytest.mark.parametrize("lambda_ce", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 9])
def test_is_the_weighted_sum_of_its_definition(lambda_ce, classes):
    logits, target = example(classes=classes)
    ce, dice = terms(logits, target)
    loss = LogitResolutionDiceCELoss(lambda_ce=lambda_ce)(logits, target)
    assert float(loss) == pytest.approx(lambda_ce * ce + (1 - lambda_ce) * dice, rel=1e-5)


def test_weighs_cross_entropy_with_a_fifth_by_default():
    logits, target = example()
    ce, dice = terms(logits, target)
    assert float(LogitResolutionDiceCELoss()(logits, target)) == pytest.approx(0.2 * ce + 0.8 * dice, rel=1e-5)


def test_two_pixels_by_hand():
    """Probabilities 3/4 and 1/2 for the right class."""
    logits = torch.log(torch.tensor([[[[0.75, 0.5]], [[0.25, 0.5]]]]))
    target = torch.tensor([[[[0, 1]]]])
    ce = -(np.log(0.75) + np.log(0.5)) / 2
    background = 1 - 2 * 0.75 / (0.75**2 + 0.5**2 + 1)
    foreground = 1 - 2 * 0.5 / (0.25**2 + 0.5**2 + 1)
    expected = 0.2 * ce + 0.8 * (background + foreground) / 2
    assert float(LogitResolutionDiceCELoss()(logits, target)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("size", "target_size"), [(4, 16), (4, 8), (4, 14), (7, 28), (5, 3)])
def test_label_map_is_taken_to_the_logits_by_nearest_neighbour(size, target_size):
    logits, target = example(size=size, target_size=target_size)
    nearest = ((np.arange(size) + 0.5) * target_size / size).astype(int)
    reduced = target[:, :, nearest][:, :, :, nearest]
    loss = LogitResolutionDiceCELoss()
    assert torch.equal(loss(logits, target), loss(logits, reduced))
    ce, dice = terms(logits, reduced)
    assert float(loss(logits, target)) == pytest.approx(0.2 * ce + 0.8 * dice, rel=1e-5)


def test_gradient_is_that_of_the_definition():
    logits, target = example(batch=1, classes=2, size=2, target_size=2)
    logits.requires_grad_()
    LogitResolutionDiceCELoss()(logits, target).backward()
    step = 1e-5
    for index in np.ndindex(*logits.shape):
        shifted = [logits.detach().double().clone() for _ in range(2)]
        shifted[0][index] += step
        shifted[1][index] -= step
        high, low = (0.2 * ce + 0.8 * dice for ce, dice in (terms(s, target) for s in shifted))
        assert float(logits.grad[index]) == pytest.approx((high - low) / 2 / step, abs=1e-5)


@pytest.mark.parametrize("value", [0, 2])
def test_gradient_is_finite_where_classes_are_absent(value):
    logits, target = example()
    logits = (50 * logits).requires_grad_()
    loss = LogitResolutionDiceCELoss()(logits, torch.full_like(target, value))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_single_precision(dtype):
    logits, target = example(size=64, target_size=64)
    half = logits.to(dtype)
    loss = LogitResolutionDiceCELoss()(half, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, LogitResolutionDiceCELoss()(half.float(), target))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_label_may_be_of_any_number_type(dtype):
    logits, target = example()
    loss = LogitResolutionDiceCELoss()
    assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target))


def test_right_logits_cost_nothing_and_wrong_ones_much():
    _, target = example()
    right = 30.0 * torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1)
    loss = LogitResolutionDiceCELoss()
    assert float(loss(right, target)) < 1e-4
    assert float(loss(-right, target)) > 3


def test_further_arguments_reach_monais_loss():
    logits, target = example()
    with_background, without = (LogitResolutionDiceCELoss(include_background=b)(logits, target) for b in (True, False))
    assert not torch.equal(with_background, without)
