from .case_evaluator import CaseEvaluator
from .corrected_batch import OneClassInferer, PrepareCorrectedBatch
from .pseudo_labels import PreparePseudoLabels

__all__ = ["CaseEvaluator", "OneClassInferer", "PrepareCorrectedBatch", "PreparePseudoLabels"]
