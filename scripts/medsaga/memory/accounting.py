"""Which tensors are alive during training, in bytes by category, on any device and for fake tensors alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CATEGORIES", "MemoryAccounting"]

CATEGORIES = ("weights", "gradients", "optimizer state", "activations", "temporaries")

# what CUDA's caching allocator rounds a request up to
_CUDA_BLOCK = 512


@dataclass
class _Block:
    storage: weakref.ref[torch.UntypedStorage]
    size: int  # bytes
    category: str
    born: int  # number of the allocation


class MemoryAccounting(TorchDispatchMode):
    """Follow the storages that operators return while this mode is active, from the network's weights on.

    A storage counts from the operator that returned it to its release, once however many views it has:

    * ``"weights"``: parameters and buffers, of the average of the weights, too;
    * ``"gradients"``: what ``param.grad`` holds after a parameter's backward pass;
    * ``"optimizer state"``: tensors in ``optimizer.state`` after a step;
    * ``"activations"``: made in the forward pass, or in backward by checkpointing's recomputation; inputs as well;
    * ``"temporaries"``: the rest of backward and step.

    What a kernel allocates and releases inside itself is not seen: workspaces of convolutions, matrix products and
    decompositions. ``torch.distributed._tools.MemTracker`` counts in the same way, but takes recomputation for
    temporaries, and counts a network once only.

    Args:
        network: its parameters and buffers are the weights.
        optimizer: its steps tell temporaries from activations.
        device: storages on other types of device are left out. On CUDA sizes are rounded up as its allocator does.
        averaged: network with the average of the weights; None, or the network itself, where there is none.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at once since the mode was entered.
        peak_split: the peak by category, in bytes.
        steps: optimizer steps seen.
    """

    def __init__(
        self, network: nn.Module, optimizer: Optimizer, device: torch.device, averaged: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.averaged = averaged
        self.optimizer = optimizer
        self.device = device
        self.live = 0
        self.peak = 0
        self.peak_split = dict.fromkeys(CATEGORIES, 0)
        self.steps = 0
        self._split = dict.fromkeys(CATEGORIES, 0)
        self._blocks: dict[int, _Block] = {}
        self._allocations = 0
        self._peak_at = 0
        self._stepping = False
        self._handles: list[Any] = []

    def __enter__(self) -> MemoryAccounting:
        for network in filter(None, (self.network, self.averaged)):
            for tensor in (*network.parameters(), *network.buffers()):
                self._follow(tensor, "weights")
        self._handles = [
            self.optimizer.register_step_pre_hook(self._step_begins),
            self.optimizer.register_step_post_hook(self._step_ends),
        ]
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._gradient_is_there))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        if not isinstance(result, (Tensor, tuple, list)):  # mostly a fake tensor's device
            return result
        category = self._category()
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf, category)
        return result

    def _category(self) -> str:
        in_backward = torch._C._current_graph_task_id() != -1
        # backward runs without recording gradients, except where checkpointing recomputes a forward pass
        if self._stepping or (in_backward and not torch.is_grad_enabled()):
            return "temporaries"
        return "activations"

    def _follow(self, tensor: Tensor, category: str) -> None:
        # the tensor's device, because a fake tensor's storage is on "meta"
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._blocks:
            return
        size = storage.nbytes()
        if self.device.type == "cuda":
            size = -(-size // _CUDA_BLOCK) * _CUDA_BLOCK
        self._allocations += 1
        reference = weakref.ref(storage, lambda _: self._release(key))
        self._blocks[key] = _Block(reference, size, category, self._allocations)
        self._split[category] += size
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            self.peak_split = dict(self._split)
            self._peak_at = self._allocations

    def _release(self, key: int) -> None:
        block = self._blocks.pop(key)
        self._split[block.category] -= block.size
        self.live -= block.size

    def _relabel(self, tensor: Tensor, category: str) -> None:
        """Set the category of a storage that is already followed."""
        block = self._blocks.get(tensor.untyped_storage()._cdata)
        if block is None:
            return
        splits = [self._split]
        if block.born <= self._peak_at:  # alive now and born before the peak, so it was alive then
            splits.append(self.peak_split)
        for split in splits:
            split[block.category] -= block.size
            split[category] += block.size
        block.category = category

    def _gradient_is_there(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # an optimizer that works inside backward has already taken it
            self._relabel(parameter.grad, "gradients")

    def _step_begins(self, *_: Any) -> None:
        self._stepping = True

    def _step_ends(self, *_: Any) -> None:
        self._stepping = False
        self.steps += 1
        for leaf in tree_leaves([dict(state) for state in self.optimizer.state.values()]):
            if isinstance(leaf, Tensor):
                self._relabel(leaf, "optimizer state")
