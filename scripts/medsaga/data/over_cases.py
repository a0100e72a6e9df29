"""Call a function with each case of a data set, in several processes where there are many cases."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from medsaga.failures import Failure
from medsaga.processes import ENDED, ENDED_CAUSE, in_processes, processes_for

from .case import files_of

__all__ = ["be_quiet", "over_cases"]


def over_cases(
    job: Callable[[Mapping[str, Any]], Any], cases: Sequence[Mapping[str, Any]], what: str, workers: int | None = None
) -> list[Any]:
    """Call a function with each case, under a progress bar with the time left.

    Args:
        job: the function; it, cases and results are pickled.
        cases: of a datalist.
        what: is done with a case, for the progress bar.
        workers: number of processes. None takes as many as cores and memory allow, and 0 only this one.

    Returns:
        results in the order of the cases; a :class:`~medsaga.failures.Failure` for a case whose process was ended.
    """
    results: list[Any] = [None] * len(cases)
    if workers is None:
        workers = processes_for(max(map(_size, cases), default=0))
    with tqdm(total=len(cases), desc=what, unit="case", dynamic_ncols=True) as progress:
        done = in_processes(job, cases, workers, be_quiet) if workers else enumerate(map(job, cases))
        for index, result in done:
            if result is ENDED:
                result = Failure(files_of(cases[index])[0], ENDED_CAUSE)
            results[index] = result
            progress.update()
    return results


def _size(case: Mapping[str, Any]) -> int:
    """Bytes of a case's files that exist; for a folder with slices, of all its files."""
    paths = [path for file in files_of(case) for path in (os.scandir(file) if os.path.isdir(file) else [file])]
    return sum(os.stat(path).st_size for path in paths if os.path.isfile(path))


def be_quiet() -> None:
    """Log errors only: what is noticed about a file stands in a table or report."""
    warnings.simplefilter("ignore")
    for library in ("medsaga", "monai"):
        logging.getLogger(library).setLevel(logging.ERROR)
