"""Fine-tune Segment Anything for medical images in little memory, as MONAI bundles and a MONAI Label app."""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "active_learning",
    "bundle",
    "data",
    "engines",
    "experiments",
    "handlers",
    "inferers",
    "losses",
    "lr_schedulers",
    "memory",
    "metrics",
    "networks",
    "optimizers",
    "transforms",
)


def __getattr__(name: str) -> ModuleType:
    # a config's "$import medsaga" then reaches medsaga.data and the rest without loading what it does not use
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
