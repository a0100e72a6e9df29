"""Stop a training whose loss or weights are not finite, before they are saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.handlers import from_engine

__all__ = ["check_loss", "check_weights"]

_loss = from_engine(["loss"], first=True)

_ADVICE = (
    "Training has diverged, or an image gives values that are not numbers. Try lower learning rates (a tenth of lr and "
    "encoder_lr), a larger warmup_steps, max_norm=1.0 or precision=fp32, and look at the training images."
)


def check_loss(engine: Engine, kept: str) -> None:
    """Raise if the iteration's loss is NaN or infinite; if it is so on one process, raise on all.

    Only the loss counts: a step that a GradScaler skips because gradients overflow is normal.

    Args:
        engine: trainer, after an iteration. Progress and TensorBoard read the loss then, too, so a GPU waits only once.
        kept: what is still good, for the message.

    Raises:
        FloatingPointError: with epoch, iteration and what to try.
    """
    loss = float(_loss(engine.state.output))
    if _on_any_process(not _is_number(loss), engine.state.device):
        state = engine.state
        raise FloatingPointError(
            f"Epoch {state.epoch}, iteration {state.iteration}: the loss is {loss}. {_ADVICE} {kept}"
        )


def check_weights(engine: Engine, state: Mapping[str, Any], kept: str) -> None:
    """Raise if a weight is NaN or infinite; if it is so on one process, raise on all.

    Args:
        engine: trainer.
        state: the network's state dict; dictionaries in it are looked into.
        kept: what is still good, for the message.

    Raises:
        FloatingPointError: with epoch and the first such parameter.
    """
    broken = [name for name, value in _tensors(state) if value.is_floating_point() and not value.isfinite().all()]
    if _on_any_process(bool(broken), engine.state.device):
        named = f": {broken[0]}" if len(broken) == 1 else f", {broken[0]} and {len(broken) - 1} more" if broken else ""
        raise FloatingPointError(
            f"Epoch {engine.state.epoch}: weights are not finite{named}. They are not saved. {_ADVICE} {kept}"
        )


def _is_number(value: float) -> bool:
    return -torch.inf < value < torch.inf


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value)


def _on_any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process: all have to stop, or the others would wait for it in their next step."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flag
    shared = torch.tensor(float(flag), device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)
