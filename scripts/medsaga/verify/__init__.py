"""Check any MONAI bundle: files, metadata, configs, network and weights, and data that must not be published."""

from .findings import Finding
from .run import verify_bundle, verify_folder

__all__ = ["Finding", "verify_bundle", "verify_folder"]
