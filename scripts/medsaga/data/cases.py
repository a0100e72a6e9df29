"""Cases to segment or to score; one that cannot be read does not stop the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.data import Dataset

from medsaga.failures import Failure, failure_of

from .case import files_of

__all__ = ["Cases", "failure_in"]

_FILE, _CAUSE = "failed_file", "failed_cause"


class Cases(Dataset):
    """MONAI's ``Dataset``; for a case that cannot be read, its item says so instead of an exception.

    An exception would end the data loader. Such an item has two strings, which survive collating;
    :func:`failure_in` reads them, and :class:`~medsaga.engines.CaseEvaluator` lists them. Load one case at a time.

    Args:
        data: cases, ``[{"image": path, "label": path}]`` or ``[{"image": path}]``.
        transform: deterministic transforms of a case.
    """

    def _transform(self, index: int) -> Mapping[str, Any]:
        case = self.data[index]
        try:
            return super()._transform(index)
        except Exception as err:
            failure = failure_of(err, files_of(case), "cannot be read")
            return {_FILE: failure.file, _CAUSE: failure.cause}


def failure_in(batch: Mapping[str, Any]) -> Failure | None:
    """What is wrong with the one case of a batch of :class:`Cases`; None for a case that was read."""
    return Failure(batch[_FILE][0], batch[_CAUSE][0]) if _FILE in batch else None
