"""Weights that are uploaded: they become a version of the model, and are served by the rule that holds for all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException, UploadFile
from monailabel.interfaces.datastore import Datastore
from monailabel.utils.others.generic import file_checksum, name_to_device

from lib.model_versions import Version, Versions
from lib.served_model import COMPUTING
from lib.trainers import RetrainTask
from lib.trainers.comparing import compared
from medsaga.networks import load_weights
from medsaga.records import learnt_patients, read_record

__all__ = ["take_model"]

_COMPARED = 8  # labels; as many as a training holds back at most


def take_model(
    trainers: Mapping[str, RetrainTask], datastore: Datastore, name: str, file: UploadFile
) -> dict[str, Any]:
    """Keep uploaded weights as a version, and serve them if they are not worse than the served ones.

    Both are scored on labels that neither has learnt from. Weights that do not say what they have learnt from, as those
    of other programs, cannot be compared: they are kept, and served only where there is no model yet.

    Args:
        trainers: by name of their model.
        datastore: with the labels.
        name: of the model.
        file: weights of the bundle's network, as ``models/model.pt`` of a training.

    Returns:
        ``version``, ``served``, ``score``, ``served_score`` and ``why``, ``checksum`` and ``modified_time``.

    Raises:
        HTTPException: 404 for an unknown model, 422 for weights that are not the bundle's.
    """
    if name not in trainers:
        raise HTTPException(404, f"There is no model {name!r} to replace; known are {', '.join(sorted(trainers))}.")
    task = trainers[name]
    task.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=task.work_dir) as folder:
        uploaded = Path(folder) / "uploaded.pt"
        with open(uploaded, "wb") as target:
            shutil.copyfileobj(file.file, target)
        versions = Versions(task.model.models_dir)
        with COMPUTING:
            version, serve = _compared(task, datastore, versions, uploaded)
        kept = versions.add(uploaded, version, serve)
    path = task.model.models_dir / kept.file
    known = {"checksum": file_checksum(path), "modified_time": int(path.stat().st_mtime)}
    scores = {"score": kept.score, "served_score": kept.served_score}
    return {"version": kept.file, "served": serve, "why": kept.note, **scores, **known}


def _compared(task: RetrainTask, datastore: Datastore, versions: Versions, file: Path) -> tuple[Version, bool]:
    model, served = task.model, versions.served()
    overrides = {**task.overrides(name_to_device(None), from_served=False), "weights": None}
    held: dict[str, dict[str, str]] = {}
    try:
        record = read_record(file)
        patients = learnt_patients(record)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise _refused(model.name, file, err) from err
    if record is not None and model.trained:
        labelled = {Path(case["image"]).name: case for case in task._fetch_datalist({}, datastore)}
        learnt = task.learnt(labelled, served, str(file))
        new = [case for case_name, case in sorted(labelled.items()) if case_name not in learnt]
        held = task.usable(new[:_COMPARED], overrides)
    parser = task.parsed({**overrides, "validate#dataset#data": list(held.values()), "validate#handlers": []})
    network = parser.get_parsed_content("network")
    try:
        load_weights(network, file, trained=True)
    except Exception as err:
        raise _refused(model.name, file, err) from err
    if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
        raise _refused(model.name, file, ValueError("it has values that are not numbers"))
    evaluator = None
    if held:
        evaluator = parser.get_parsed_content("validate#evaluator")
        evaluator.run()
    version, serve = compared(evaluator, network, model, list(held.values()), parser, sorted(held))
    why = version.note
    if record is None and model.trained:
        why = "kept but not served: it does not say from which patients it has learnt, so it cannot be compared"
    version.note = f"uploaded; {why}"
    version.trained_on = sorted(patients)
    return version, serve


def _refused(name: str, file: Path, err: Exception) -> HTTPException:
    cause = str(err).replace(str(file), "It").rstrip(".")
    return HTTPException(422, f"The file cannot be used as {name}. {cause}.")
