"""Training in several processes: gradients averaged in the low-rank space, bases equal everywhere."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .projection import Basis

__all__ = ["average", "data_parallel", "several_processes", "share_basis"]


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


def data_parallel(network: nn.Module, optimizer: Optimizer, device: torch.device | str) -> DistributedDataParallel:
    """Wrap a network in ``DistributedDataParallel`` so that it goes with its optimizer.

    DDP keeps full gradients of all parameters. Those that :class:`~medsaga.optimizers.GaLoreAdamW` takes inside
    backward are left to it: it averages them over the processes after their projection, which is also less to send.

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
