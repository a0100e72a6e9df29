"""Check whether a run may continue with its present configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_record", "check_settings", "plain"]

logger = logging.getLogger(__name__)

_SAFE = ("state_bits",)  # moments of the other width are converted (docs/precision.md)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: comparable, and read with ``weights_only=True``."""
    return json.loads(json.dumps(dict(settings), default=str))


def check_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any], last: Path) -> None:
    """Name each setting that differs from the run's; continue only where the difference is safe.

    Args:
        before: the run's settings; None for an older run without any, which continues with a warning.
        now: the settings of the config.
        last: file of the run, for the messages.

    Raises:
        ValueError: a setting that decides the result differs.
    """
    if before is None:
        logger.warning(f"{last} does not say with which settings its run was started: they are not compared.")
        return
    refused = []
    for name in (key for key in now if key in before and now[key] != before[key]):
        difference = f"{name} is {now[name]}, was {before[name]}"
        if name == "max_epochs" and now[name] > before[name]:
            logger.warning(
                f"Resuming with another setting than the run was started with: {difference}. Learning rates that fall "
                "over a whole run follow the longer run's schedule from the next step on, so they rise."
            )
        elif name in _SAFE:
            logger.warning(f"Resuming with another setting than the run was started with: {difference}.")
        else:
            refused.append(difference)
    if refused:
        raise ValueError(
            f"Cannot resume from {last}: {'; '.join(refused)}. Resume with the settings the run was started with, or "
            "start anew (--resume false, with another --output_dir to keep this run)."
        )


def check_record(before: Mapping[str, Any] | None, now: Mapping[str, Any], last: Path) -> None:
    """Make sure that a run goes on with its own patients and slices.

    Args:
        before: the run's record; None for an older run without one, which continues with a warning.
        now: what the config gives on the data folder as it is.
        last: file of the run, for the messages.

    Raises:
        ValueError: they differ.
    """
    if before is None:
        logger.warning(f"{last} does not say which patients its run was started with: they are not compared.")
        return
    differences = []
    for part in ("train", "validation", "test"):
        old, new = set(before[part]), set(now[part])
        if old != new:
            differences.append(f"{part} patients: {len(old - new)} are no longer among them, {len(new - old)} are new")
    if not differences and before["slices"] != now["slices"]:
        differences.append("the training slices have changed, because labels were changed or replaced")
    if before["class_names"] != now["class_names"]:
        differences.append(f"class_names are {now['class_names']}, were {before['class_names']}")
    if differences:
        raise ValueError(
            f"Cannot resume from {last}: {'; '.join(differences)}. The data folder or the split has changed. Resume "
            f"with the run's own patients (--split {last.parent / 'split.json'}) and labels, or start anew."
        )
