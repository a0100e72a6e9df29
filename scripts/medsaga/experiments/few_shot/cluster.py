"""Runs spread over a SLURM cluster by submitit."""

from __future__ import annotations

import logging
from pathlib import Path

from .execution import work_off
from .plan import Experiment

__all__ = ["submit"]

logger = logging.getLogger(__name__)


def submit(experiment: Experiment, work: Path, jobs: int, options: dict[str, str], cluster: str = "slurm") -> list:
    """Submit jobs that share the experiment's folder, each taking the next run that no other has.

    Args:
        experiment: what to run.
        work: folder that all nodes see.
        jobs: how many.
        options: submitit's parameters, for example ``timeout_min``, ``slurm_partition``, ``gpus_per_node``.
        cluster: submitit's name of the launcher; ``local`` starts processes here.

    Returns:
        submitit's jobs. The command without ``--slurm`` then writes the page of what is done.

    Raises:
        RuntimeError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as err:
        raise RuntimeError("submitit is not installed: pip install 'medsaga[cluster]'") from err
    executor = submitit.AutoExecutor(work / "jobs", cluster=cluster)
    executor.update_parameters(**{key: int(value) if value.isdigit() else value for key, value in options.items()})
    submitted = [executor.submit(_work, experiment, work) for _ in range(jobs)]
    logger.info("submitted %s; their logs are in %s", ", ".join(job.job_id for job in submitted), work / "jobs")
    return submitted


def _work(experiment: Experiment, work: Path) -> None:
    if failed := work_off(experiment.runs, work, lambda run: None):
        raise RuntimeError(f"{len(failed)} runs failed: {', '.join(run.name for run in failed)}")
