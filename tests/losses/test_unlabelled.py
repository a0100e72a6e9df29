import pytest
import torch

from medsaga.losses import LogitResolutionDiceCELoss, LogitResolutionDiceFocalLoss

pytestmark = pytest.mark.parametrize("loss", [LogitResolutionDiceCELoss(), LogitResolutionDiceFocalLoss()])


def test_pixels_without_a_label_count_as_if_they_were_not_there(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    target = torch.randint(3, (2, 1, 8, 8), dtype=torch.uint8)
    part = target.clone()
    part[:, :, 5:] = 255  # the labelled rows alone make the loss
    (gradient,) = torch.autograd.grad(loss(logits, part), logits)
    alone = logits[:, :, :5].detach().clone().requires_grad_()
    expected = loss(alone, target[:, :, :5])
    torch.testing.assert_close(loss(logits, part), expected)
    (of_rows,) = torch.autograd.grad(expected, alone)
    torch.testing.assert_close(gradient[:, :, :5], of_rows)
    assert not gradient[:, :, 5:].any()


def test_a_batch_without_a_label_has_no_gradient(loss):
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 1, 4, 4), 255, dtype=torch.uint8))
    value.backward()
    assert float(value.detach()) == 0 and not logits.grad.any()
