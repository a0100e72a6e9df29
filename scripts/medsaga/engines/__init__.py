from .case_evaluator import CaseEvaluator
from .corrected_batch import OneClassInferer, PrepareCorrectedBatch
from .prompted_batch import PreparePromptedBatch

__all__ = ["CaseEvaluator", "OneClassInferer", "PrepareCorrectedBatch", "PreparePromptedBatch"]
