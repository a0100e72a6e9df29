from .slice_inferer import SliceBatchInferer

__all__ = ["SliceBatchInferer"]
