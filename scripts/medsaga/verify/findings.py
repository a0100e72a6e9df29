"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle

__all__ = ["Check", "Finding", "SkippedError", "skip_without"]

# yields a sentence for each thing that is wrong, and how to mend it
Check = Callable[["Bundle"], Iterator[str]]


class SkippedError(Exception):
    """A check that does not apply, with the reason."""


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Args:
        check: what was checked.
        state: ``ok``, ``failed`` or ``skipped``.
        problems: what is wrong and how to mend it, a sentence each; for a check that was skipped, why.
    """

    check: str
    state: str
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.state == "failed"

    def __str__(self) -> str:
        return f"{self.check}: " + " ".join(self.problems)


def skip_without(needed: Any, reason: str) -> None:
    """
    Raises:
        SkippedError: there is nothing to check.
    """
    if not needed:
        raise SkippedError(reason)
