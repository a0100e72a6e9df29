"""Optimizers that train Segment Anything in little memory."""

from .distributed import data_parallel
from .galore import GaLoreAdamW
from .param_groups import sam_param_groups
from .sharded import load_parts, save_parts, shard

__all__ = ["GaLoreAdamW", "data_parallel", "load_parts", "sam_param_groups", "save_parts", "shard"]
