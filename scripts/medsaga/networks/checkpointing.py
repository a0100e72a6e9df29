"""Less memory for backward: intermediate results are computed again instead of kept, or kept in CPU memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from . import attention  # noqa: F401  registers medsaga::tiled_attention

__all__ = ["CHECKPOINTING", "image_by_image", "is_recording", "offloaded", "recomputed"]

CHECKPOINTING = ("off", "blocks", "least")

_ATTENTION = [
    torch.ops.medsaga.tiled_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


def is_recording(module: nn.Module) -> bool:
    """Whether a module is in training and a backward pass may follow, so that there is memory to save."""
    return module.training and torch.is_grad_enabled()


def recomputed(piece: Callable[..., torch.Tensor], *inputs: torch.Tensor, keep_attention: bool = False) -> torch.Tensor:
    """Run a piece of a network; in backward run it again instead of keeping what it computed.

    Args:
        piece: a module or function.
        inputs: its arguments.
        keep_attention: keep the results of the attention operators, which then need not run again.

    Returns:
        What the piece returns; the gradients too are those of the piece itself, dropout included.

    Source:
        Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
    """
    if not keep_attention:
        return checkpoint(piece, *inputs, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _ATTENTION)
    return checkpoint(piece, *inputs, use_reentrant=False, context_fn=contexts)


def image_by_image(piece: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """As :func:`recomputed`, for each image of a batch on its own: backward then holds one image's tensors at a time.

    Args:
        piece: a module or function that treats each item of its arguments' first dimension independently.
        inputs: its arguments, batches of equal size.

    Returns:
        What the piece returns for the batch.
    """
    return torch.cat([recomputed(piece, *items) for items in zip(*(x.split(1) for x in inputs))])


def offloaded(enabled: bool, device: torch.device) -> AbstractContextManager:
    """Context in which forward puts the tensors that backward needs into CPU memory; backward fetches them from there.

    Args:
        enabled: False for a context that does nothing.
        device: the device that computes. If it is the CPU, everything is there already and stays.
    """
    if not enabled:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
