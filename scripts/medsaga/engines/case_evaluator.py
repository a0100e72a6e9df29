"""Inference and evaluation that list a failed case and process all others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey, ensure_tuple

from medsaga.data.cases import failure_in
from medsaga.failures import CasesFailedError, Failure, failure_of, listed, nothing_can_be_written, write_failures

__all__ = ["CaseEvaluator"]

logger = logging.getLogger(__name__)


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for cases of :class:`~medsaga.data.Cases`: those that fail do not end the run.

    A case fails when it cannot be read, segmented, post-processed or saved. Handlers get an empty output for it;
    metrics do not include it. A full disk ends the run at once, because no further mask could be saved.

    Args:
        args, kwargs: of ``SupervisedEvaluator``. The data loader must have batches of one case, so that an error
            belongs to that case.
        errors: CSV of the cases that failed, with the columns ``file`` and ``cause``; not there if all went well.

    Raises:
        ValueError: a data loader with larger batches.
    """

    def __init__(self, *args: Any, errors: str | Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        batch_size = getattr(self.data_loader, "batch_size", 1)
        if batch_size != 1:
            raise ValueError(
                f"dataloader: batch_size={batch_size}; it must be 1, so that one case can fail without the others."
            )
        self.errors = Path(errors)
        self.failures: list[Failure] = []

    def run(self, global_epoch: int = 1) -> None:
        """
        Raises:
            CasesFailedError: after all other cases and the handlers of the run's end, with ten files and their causes.
        """
        self.failures.clear()
        write_failures(self.errors, [])  # of an earlier run
        try:
            super().run(global_epoch)
        finally:
            write_failures(self.errors, self.failures)  # also of a run that was interrupted
        if self.failures:
            raise CasesFailedError(
                f"{len(self.failures)} of {self.state.iteration} cases failed, listed in {self.errors}:\n"
                f"{listed(self.failures)}"
            )

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, torch.Tensor]) -> dict | list:
        failure = failure_in(batchdata)
        if failure is None:
            files = _files(batchdata)
            try:
                return super()._iteration(engine, batchdata)  # post-processing and saving included
            except Exception as err:
                if nothing_can_be_written(err):
                    raise
                failure = failure_of(err, files, "cannot be segmented")
            # outside of the error handling, which keeps the tensors alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        logger.warning(f"Failed: {failure}")
        self.failures.append(failure)
        if len(self.failures) == self.state.epoch_length:
            self.terminate()  # skips the end of the epoch, because metrics of no case cannot be computed
        return []

    def _register_metrics(self, k_metric: dict[str, Metric], add_metrics: dict[str, Metric] | None = None) -> None:
        super()._register_metrics(k_metric, add_metrics)
        for metric in {**k_metric, **(add_metrics or {})}.values():
            self.remove_event_handler(metric.iteration_completed, Events.ITERATION_COMPLETED)
            self.add_event_handler(Events.ITERATION_COMPLETED(event_filter=_has_output), metric.iteration_completed)


def _has_output(engine: Engine, _: int) -> bool:
    return bool(engine.state.output)


def _files(batch: Mapping[str, Any]) -> list[str]:
    """Files of the image and, where there is one, the label of a batch of one case."""
    images = [batch[key] for key in ("image", "label") if isinstance(batch.get(key), MetaTensor)]
    return [str(file) for image in images for file in ensure_tuple(image.meta[ImageMetaKey.FILENAME_OR_OBJ])]
