"""A training that cannot start is refused by the request that asks for it."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from monailabel.endpoints import train
from monailabel.interfaces.app import MONAILabelApp

__all__ = ["refuse_without_labels"]


def refuse_without_labels(app: MONAILabelApp) -> None:
    """From now on ``POST /train`` answers 409 where there is no label to train on, instead of a training that fails.

    ``POST /train/`` for all models at once, as OHIF sends it, starts those that have labels and says why it leaves out
    the others; it is refused where none has any.

    Args:
        app: whose trainings they are.
    """
    start = train.run_model

    def missing(model: str) -> str | None:
        if model not in app._trainers or app._trainers[model].labelled(app.datastore()):  # unknown ones are not ours
            return None
        return f"{model} has no label to train on: submit one, with the tag final, and start the training then."

    def run_model(
        model: str, params: dict[str, Any] | None = None, run_sync: bool = False, enqueue: bool = False
    ) -> dict[str, Any]:
        if reason := missing(model):
            raise HTTPException(409, reason)
        return start(model, params, run_sync, enqueue)

    def run(params: dict[str, Any] | None = None, run_sync: bool = False) -> dict[str, Any]:
        reasons = {name: missing(name) for name in app._trainers}
        if reasons and all(reasons.values()):
            raise HTTPException(409, " ".join(filter(None, reasons.values())))
        return {
            name: {
                "result": None if reason else start(name, dict((params or {}).get(name) or {}), run_sync, True),
                "detail": reason,
            }
            for name, reason in reasons.items()
        }

    train.run_model, train.run = run_model, run
