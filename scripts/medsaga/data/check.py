"""Every case of a training is read and preprocessed before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from monai.transforms import Compose

from medsaga.failures import CasesFailedError, Failure, write_failures
from medsaga.text_table import text_table

from .case import cut_in
from .slice_cache import prepare_cases

__all__ = ["check_cases"]

logger = logging.getLogger(__name__)

_SHOWN = 20  # failures on the screen; the file has all


def check_cases(
    train: Sequence[dict],
    others: Sequence[dict],
    preprocessing: Compose,
    num_classes: int,
    cache_dir: str | Path,
    num_workers: int,
    errors: str | Path,
    plane: str | None = None,
) -> None:
    """Read and preprocess each case of a split, so that none stops the training hours later.

    The result is kept in the slice cache, so a second call takes no time. Of several processes, the first one checks
    and the others wait for it.

    Args:
        train: cases whose slices the training reads; they are cached.
        others: of validation and test.
        preprocessing: of the bundle, which refuses what cannot be used (:class:`~medsaga.transforms.CheckCased`).
        num_classes: including background.
        cache_dir: of the slice cache.
        num_workers: processes that read, see :func:`~medsaga.data.cache_build.make_all`.
        errors: CSV of the files that cannot be used, each with its cause; not there if all can be used.
        plane: of the training slices, see :class:`~medsaga.data.SliceDataset`.

    Raises:
        CasesFailedError: a table of the files that cannot be used.
        SystemExit: for the same cause in the other processes, which print nothing.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    failed: list[bool] = [False]
    if not several or dist.get_rank() == 0:
        _, failures = prepare_cases(cut_in(train, plane), others, preprocessing, num_classes, cache_dir, num_workers)
        write_failures(errors, failures)
        failed[0] = bool(failures)
    if several:
        # with its own time limit: the group's limit is meant for training steps, which take seconds
        dist.broadcast_object_list(failed, group=dist.new_group(backend="gloo", timeout=timedelta(days=1)))
        if failed[0] and dist.get_rank() > 0:
            raise SystemExit(1)
    number = len(train) + len(others)
    if failed[0]:
        raise CasesFailedError(_report(failures, number, errors))
    logger.info(f"{number} cases can be used: {len(train)} for training, {len(others)} for validation and test.")


def _report(failures: list[Failure], number: int, errors: str | Path) -> str:
    table = text_table(Failure._fields, failures[:_SHOWN])
    more = f"\n... and {len(failures) - _SHOWN} more in {errors}" if len(failures) > _SHOWN else ""
    return (
        f"{len(failures)} of {number} cases cannot be used, listed in {errors}:\n\n{table}{more}\n\n"
        "Repair them, or remove them from the data set. Nothing has been trained."
    )
