"""Optimizers that train Segment Anything in little memory."""

from .galore import GaLoreAdamW
from .param_groups import sam_param_groups

__all__ = ["GaLoreAdamW", "sam_param_groups"]
