from .corrected_batch import OneClassInferer, PrepareCorrectedBatch
from .prompted_batch import PreparePromptedBatch

__all__ = ["OneClassInferer", "PrepareCorrectedBatch", "PreparePromptedBatch"]
