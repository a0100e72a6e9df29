from .box_inferer import BoxInferer
from .embedding_cache import EmbeddingCache
from .prompted_slices import PromptedSlices, SlicePrompt
from .slice_inferer import SliceBatchInferer
from .volume_inferer import VolumeInferer

__all__ = ["BoxInferer", "EmbeddingCache", "PromptedSlices", "SliceBatchInferer", "SlicePrompt", "VolumeInferer"]
