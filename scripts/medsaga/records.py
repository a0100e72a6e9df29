"""What a training learnt from, kept in its weights: any copy of them says which patients it must not be scored on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoints import read_checkpoint

__all__ = ["learnt_patients", "read_record", "record_of", "trained_plane", "with_record"]

Record = dict[str, Any]

_KEY = "record"
# beside the versions of modules, which torch keeps there: a file stays a plain state dict, and loads strictly
_METADATA_KEY = "medsaga_record"


def with_record(content: Mapping[str, Any], record: Record | None) -> Mapping[str, Any]:
    """The content of a checkpoint with the record of its run.

    A plain state dict stays one: the record is put into its ``_metadata``, which ``torch.save`` and ``torch.load``
    keep, with ``weights_only=True`` too, and which ``load_state_dict`` does not look at. Any other dictionary gets the
    key ``record``.

    Args:
        content: is left as it is.
        record: see :func:`~medsaga.data.training_record`, of plain values only; None changes nothing.

    Returns:
        What to save; its tensors are those of ``content``.
    """
    if record is None:
        return content
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        return {**content, _KEY: record}
    state = OrderedDict(content)
    metadata = OrderedDict(getattr(content, "_metadata", {}))
    metadata[_METADATA_KEY] = record
    state._metadata = metadata
    return state


def record_of(content: Any) -> Record | None:
    """The record in the content of a checkpoint; None where there is none (older or foreign weights)."""
    found = content.get(_KEY) if isinstance(content, Mapping) else None
    if found is None:
        found = getattr(content, "_metadata", {}).get(_METADATA_KEY)
    return found if isinstance(found, dict) else None


def read_record(path: str | Path) -> Record | None:
    """The record in a file of weights (``model.pt``, ``last.pt``, ``best.pt``); None where there is none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. If it is a bundle's model, train the bundle first.")
    return record_of(read_checkpoint(path, mapped=True))


def trained_plane(path: str | Path) -> str | None:
    """``all`` for weights that have learnt from slices of all planes, by the record in their file; else None.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_record`.
    """
    return (read_record(path) or {}).get("plane")


def learnt_patients(record: Record | None) -> set[str]:
    """Patients whose labels the weights have learnt from, those of the weights they started from included."""
    if record is None:
        return set()
    own = record["train"] if record["labelled"] else []
    return {*own, *record["learnt_before"]}
