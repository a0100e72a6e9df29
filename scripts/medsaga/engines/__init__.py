from .case_evaluator import CaseEvaluator
from .corrected_batch import OneClassInferer, PrepareCorrectedBatch

__all__ = ["CaseEvaluator", "OneClassInferer", "PrepareCorrectedBatch"]
