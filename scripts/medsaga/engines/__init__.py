from .prompted_batch import PreparePromptedBatch

__all__ = ["PreparePromptedBatch"]
