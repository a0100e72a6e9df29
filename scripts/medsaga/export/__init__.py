"""Networks for CPUs without PyTorch's training parts: written by ``python -m medsaga.export``, run by OpenVINO."""

from .convert import export_network
from .exported import ExportedSegmenter

__all__ = ["ExportedSegmenter", "export_network"]
