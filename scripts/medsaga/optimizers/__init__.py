"""Optimizers that train Segment Anything in little memory."""

from .distributed import data_parallel
from .galore import GaLoreAdamW
from .param_groups import sam_param_groups

__all__ = ["GaLoreAdamW", "data_parallel", "sam_param_groups"]
