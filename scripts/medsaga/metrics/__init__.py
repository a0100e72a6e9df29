from .segmentation import segmentation_metrics

__all__ = ["segmentation_metrics"]
