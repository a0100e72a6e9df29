"""A network whose parameters are divided over processes (FSDP2), and the files of its training."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from .galore import GaLoreAdamW

__all__ = ["load_parts", "save_parts", "shard"]


def shard(network: nn.Module, device_type: str = "cuda") -> nn.Module:
    """Divide a network's parameters over all processes, by ``fully_shard``.

    Its units are the blocks of the image encoder, and the rest.

    A block's parameters are whole only while it computes. Make the optimizer afterwards: the parameters are new ones.
    With ``update_in_backward`` a matrix is gathered when its gradient is projected; its state in the optimizer is as
    small as without sharding, and each process has all of it. The rest of the state is divided like the parameters.

    Args:
        network: a :class:`~medsaga.networks.SamSegmenter`, the same in all processes.
        device_type: ``cuda`` or ``cpu``.

    Returns:
        The network, changed in place.
    """
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for module in network.image_encoder.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def save_parts(folder: str | Path, network: nn.Module, optimizer: GaLoreAdamW) -> None:
    """Save weights and optimizer's state, each process its part, as safetensors; all of them call this.

    Args:
        folder: an existing folder is replaced once everything is written.
        network, optimizer: the result of :func:`shard`, and an optimizer of its parameters.
    """
    folder = Path(folder)
    part, old = (folder.with_name(f"{folder.name}.{end}") for end in ("part", "old"))
    if dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
    dist.barrier()
    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    dcp.save(_tensors(network, optimizer, optimizer.state), storage_writer=writer)
    if dist.get_rank() == 0:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)  # still there, should the next line not be reached
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def load_parts(folder: str | Path, network: nn.Module, optimizer: GaLoreAdamW) -> None:
    """Load what :func:`save_parts` has written, by any number of processes.

    Learning rates are not in the files: the schedule has them.

    Args:
        folder: of the files.
        network, optimizer: as in :func:`save_parts`. Both are filled.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the state does not fit the optimizer.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} does not exist: name a folder that save_parts has written.")
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    divided = {param for group in optimizer.param_groups if group["rank"] is None for param in group["params"]}
    parameters = _parameters(network, optimizer)
    states: dict[Tensor, dict[str, Tensor]] = {param: {} for param in parameters.values()}
    for entry, found in saved.items():
        name, _, key = entry.removeprefix("optimizer.").rpartition(".")
        if entry.startswith("optimizer.") and name in parameters:
            param, like = parameters[name], {"dtype": found.properties.dtype}
            is_part = param in divided and found.size == param.shape
            states[param][key] = torch.zeros_like(param, **like) if is_part else torch.zeros(found.size, **like)
    dcp.load(_tensors(network, optimizer, states), storage_reader=reader)
    content = optimizer.state_dict()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    content["state"] = {number: states[param] for number, param in enumerate(params) if states[param]}
    optimizer.load_state_dict(content)


def _tensors(network: nn.Module, optimizer: GaLoreAdamW, states: dict[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors by name, in the network's own memory."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for name, param in _parameters(network, optimizer).items():
        tensors.update({f"optimizer.{name}.{key}": value for key, value in states.get(param, {}).items()})
    return tensors


def _parameters(network: nn.Module, optimizer: GaLoreAdamW) -> dict[str, Tensor]:
    """The optimizer's parameters by name."""
    known = {param for group in optimizer.param_groups for param in group["params"]}
    return {name: param for name, param in network.named_parameters() if param in known}
