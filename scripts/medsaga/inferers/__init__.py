from .embedding_cache import EmbeddingCache
from .prompted_slices import PromptedSlices, SlicePrompt
from .slice_inferer import SliceBatchInferer

__all__ = ["EmbeddingCache", "PromptedSlices", "SliceBatchInferer", "SlicePrompt"]
