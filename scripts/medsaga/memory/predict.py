"""The memory of a training step, without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import _foreach_supported_types

from .absent_gpu import absent_gpu
from .setup import Setup
from .training import Training
from .values import FakeValues

__all__ = ["predict"]


def predict(setup: Setup, device: str | None = None) -> dict[str, int]:
    """Predict the peak memory of training steps: they run on tensors that have shapes and no values.

    The bundle's own network, loss, optimizer and trainer run, in seconds and next to no memory. The device need not be
    in this machine.

    Args:
        setup: what the bundle trains with.
        device: ``"cuda"`` or ``"cpu"``; the config's where it is None.

    Returns:
        The peak over the first two steps by category, in bytes. The first finds GaLore's bases, the second has the
        optimizer's state from its start.
    """
    parser = setup.parser()
    if device is not None:
        parser["device"] = f"$torch.device('{device}')"
    with ExitStack() as stack:
        stack.enter_context(_fake_tensors())
        training = Training(parser)
        accounting = stack.enter_context(training.accounting())
        if training.device.type == "cuda" and not torch.cuda.is_available():
            stack.enter_context(absent_gpu(training.network.parameters()))
        training.run(2)
    return accounting.peak_split


@contextmanager
def _fake_tensors() -> Iterator[None]:
    with (
        patch.object(nn.Module, "_apply", _apply),
        # the types for which torch.optim takes its multi-tensor form
        patch("torch.optim.optimizer._foreach_supported_types", [*_foreach_supported_types, FakeTensor]),
        FakeTensorMode(),
        FakeValues(),
    ):
        yield


def _apply(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply``, on which ``to`` is built; torch's own cannot exchange fake parameters."""
    if recurse:
        for child in module.children():
            child._apply(function)
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        old = parameter.detach()
        new = function(old)
        if new is not old:  # else an optimizer may already hold it
            module._parameters[key] = nn.Parameter(new, parameter.requires_grad)
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = function(buffer)
    return module
