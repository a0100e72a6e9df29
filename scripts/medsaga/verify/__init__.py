"""Any MONAI bundle checked: files, metadata, configs, network and weights, and what must not be handed on."""

from .findings import Finding
from .run import verify_bundle, verify_folder

__all__ = ["Finding", "verify_bundle", "verify_folder"]
