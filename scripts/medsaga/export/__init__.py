"""Networks for CPUs without PyTorch's training parts: written by ``python -m medsaga.export``, run by OpenVINO."""

from .convert import export_network
from .exported import ExportedSegmenter
from .source import load_network

__all__ = ["ExportedSegmenter", "export_network", "load_network"]
