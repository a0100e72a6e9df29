"""``python -m medsaga.experiments.few_shot EXPERIMENT.json``: methods compared by how many images they learn from."""

from .plan import Experiment, Run, read_experiment

__all__ = ["Experiment", "Run", "read_experiment"]
