"""Training in several processes: gradients averaged in the low-rank space, equal bases, parameters in parts."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .projection import Basis

__all__ = [
    "average",
    "data_parallel",
    "is_sharded",
    "local",
    "own_rows",
    "several_processes",
    "share_basis",
    "whole",
]


def several_processes() -> bool:
    """Whether this process trains together with others (torchrun)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average(tensor: Tensor) -> Tensor:
    """Mean over all processes, in place."""
    dist.all_reduce(tensor)  # gloo has no mean of its own
    return tensor.div_(dist.get_world_size())


def share_basis(basis: Basis) -> Basis:
    """The first process's basis, in place: equal gradients may still give others another sign or last digit."""
    for vectors in basis:
        if vectors is not None:
            dist.broadcast(vectors, src=0)
    return basis


def is_sharded(param: Tensor) -> bool:
    """Whether a parameter is divided over processes (``fully_shard``, FSDP2); its gradients are then averages."""
    return isinstance(param, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is divided over processes; other tensors as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is divided over processes, in the same memory; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor, param: Tensor) -> Tensor:
    """The rows of a whole tensor that match this process's part of a parameter; all rows if that is not sharded."""
    if not isinstance(param, DTensor):
        return tensor
    return distribute_tensor(tensor, param.device_mesh, param.placements, src_data_rank=None).to_local()


def data_parallel(network: nn.Module, optimizer: Optimizer, device: torch.device | str) -> DistributedDataParallel:
    """Wrap a network in ``DistributedDataParallel`` so that it works with its optimizer.

    DDP keeps full gradients of all its parameters. Parameters whose gradients :class:`~medsaga.optimizers.GaLoreAdamW`
    takes inside backward are therefore left to the optimizer: it averages their gradients over the processes after
    projection, which also sends less.

    Args:
        network: on its device.
        optimizer: of the network's parameters. Any other than a ``GaLoreAdamW`` with ``update_in_backward`` gets plain
            DDP.
        device: the process's device.

    Returns:
        The wrapped network.
    """
    taken = getattr(optimizer, "taken_in_backward", ())
    names = [name for name, parameter in network.named_parameters() if any(parameter is other for other in taken)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, names)
    with torch.no_grad():
        for parameter in taken:
            dist.broadcast(parameter, src=0)  # as DDP does with the others
    device = torch.device(device)
    return DistributedDataParallel(network, device_ids=None if device.type == "cpu" else [device])
