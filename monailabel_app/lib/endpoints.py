"""MONAI Label's endpoints, with what clients send checked before anything is done with it."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastapi import HTTPException, Response, UploadFile
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, model, proxy, scoring, session, train
from monailabel.interfaces.app import MONAILabelApp

from lib.fields import BatchFields, InferFields, ScoringFields, StrategyFields, TrainFields, checked, json_object
from lib.names import plain_name, refusing
from medsaga.reading import open_image

__all__ = ["check_requests"]

_CHECKSUM = re.compile(r"((MD5|SHA256|SHA512):)?[0-9a-fA-F]{32,128}")

Check = Callable[..., Any]


def check_requests(app: MONAILabelApp, take_model: Callable[[str, UploadFile], dict[str, Any]]) -> None:
    """From now on endpoints accept only known fields (``lib.fields``), JSON that can be stored, and plain file names.

    Args:
        app: whose endpoints they are.
        take_model: what ``PUT /model/NAME`` does, with the name and the file.
    """
    train_fields, score_fields = checked(TrainFields), checked(ScoringFields)
    infer_fields = _json_text("params", checked(InferFields))
    train.run = functools.partial(_train_all, app, train.run_model)
    _before(train, "run", params=lambda given: _by_name(given, app._trainers, train_fields))
    _before(train, "run_model", params=train_fields, model=lambda name: _with_labels(app, name))
    _before(scoring, "run_method", params=score_fields)
    _before(scoring, "run", params=lambda given: _by_name(given, app._scoring_methods, score_fields))
    _before(batch_infer, "run", params=checked(BatchFields))
    _before(activelearning, "sample", params=checked(StrategyFields))
    _before(infer, "run_inference", lambda asked: _can_infer(app, asked), params=infer_fields, file=_plain_file)
    infer.send_response = _with_doubt(infer.send_response)
    _before(datastore, "add_image", params=_json_text("params"), file=_plain_file)
    _before(datastore, "save_label", params=_json_text("params"), label=_plain_file)
    _before(datastore, "update_image_info", info=_json_text("info"))
    _before(datastore, "update_label_info", info=_json_text("info"))
    _before(datastore, "download_image", check_sum=_checksum)
    _before(session, "create_session", files=lambda files: [_plain_file(file) for file in files])
    _before(session, "get_session", lambda asked: _one_file(app, **asked))
    session.create_session = _reading_image(app, session.create_session)
    _before(proxy, "proxy_dicom", _with_its_query)
    model.update_model = lambda background_tasks, model, file: take_model(model, _plain_file(file))


def _before(
    module: ModuleType, name: str, check_all: Callable[[dict[str, Any]], None] | None = None, **checks: Check
) -> None:
    """Put checks before a function that an endpoint calls.

    Args:
        module: of the endpoint.
        name: of the function there.
        check_all: takes all its arguments by name, and may change them.
        checks: by argument; each takes the argument's value and returns the value that is passed on.
    """
    function = getattr(module, name)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        if check_all:
            check_all(given.arguments)
        for argument, check in checks.items():
            given.arguments[argument] = check(given.arguments[argument])
        return function(*given.args, **given.kwargs)

    setattr(module, name, checking)


# --- segmentation ---------------------------------------------------------------------------------------------------


def _can_infer(app: MONAILabelApp, asked: dict[str, Any]) -> None:
    if not (asked["image"] or asked["session_id"] or asked["file"]):
        raise HTTPException(422, "There is nothing to segment: give image, session_id or a file.")
    if asked["label"]:
        raise HTTPException(422, "label: no model of this server takes a mask; send points, a box, or nothing.")
    if asked["session_id"] and app.sessions() is None:
        raise HTTPException(406, "Sessions are switched off on this server (MONAI_LABEL_SESSIONS).")
    if asked["output"] == "dicom_seg" and not app.studies.startswith("http"):
        raise HTTPException(422, "output=dicom_seg needs a DICOM store; use output=image.")


def _with_doubt(send_response: Callable[..., Any]) -> Callable[..., Any]:
    """``send_response``, which also names the least sure slice in a header, because OHIF asks for the mask alone."""

    def send(store: Any, result: dict[str, Any], *rest: Any) -> Any:
        answer = send_response(store, result, *rest)
        place = (result.get("params") or {}).get("least_sure_slice")
        if place is not None and isinstance(answer, Response):
            answer.headers["medsaga-least-sure-slice"] = str(place)
        return answer

    return send


def _reading_image(app: MONAILabelApp, create_session: Callable[..., Any]) -> Callable[..., Any]:
    """``create_session``, which keeps a session only if its image can be read."""

    def create_readable_session(*args: Any, **kwargs: Any) -> Any:
        answer = create_session(*args, **kwargs)
        sessions, session_id = app.sessions(), answer["session_id"]
        image = sessions.get_session(session_id).image
        try:
            with refusing(image, "the session's image"):
                open_image(image)
        except HTTPException:
            sessions.remove_session(session_id)
            raise
        return answer

    return create_readable_session


def _one_file(app: MONAILabelApp, session_id: str, update_ts: bool, image: bool) -> None:
    if image and app.sessions() is not None and os.path.isdir(app.sessions().get_session(session_id).image):
        raise HTTPException(
            422, f"Session {session_id} is a folder of several files; only an image of one file can be sent."
        )


# --- the DICOM store ------------------------------------------------------------------------------------------------


def _with_its_query(asked: dict[str, Any]) -> None:
    """Add the query: MONAI Label asks the store for the path alone, so a search for one patient would find all."""
    # MONAI Label tells metadata from searches by the path's end; requests for metadata have no query
    if asked["request"].url.query and not asked["path"].endswith("metadata"):
        asked["path"] += f"?{asked['request'].url.query}"


# --- training -------------------------------------------------------------------------------------------------------


def _without_labels(app: MONAILabelApp, model: str) -> str | None:
    """Why a training would fail; None for a model that has labels, and for an unknown one, which is refused later."""
    if model not in app._trainers or app._trainers[model].labelled(app.datastore()):
        return None
    return f"{model} has no label to train on: submit one, with the tag final, and start the training then."


def _with_labels(app: MONAILabelApp, model: str) -> str:
    if reason := _without_labels(app, model):
        raise HTTPException(409, reason)
    return model


def _train_all(app: MONAILabelApp, start: Callable[..., Any], params: dict[str, Any], run_sync: bool) -> dict[str, Any]:
    """Start the trainings that have labels, as OHIF asks for all at once, and say why the others are left out.

    Raises:
        HTTPException: 409 where none has any.
    """
    reasons = {name: _without_labels(app, name) for name in app._trainers}
    if reasons and all(reasons.values()):
        raise HTTPException(409, " ".join(filter(None, reasons.values())))
    return {
        name: {"result": None if reason else start(name, params.get(name), run_sync, True), "detail": reason}
        for name, reason in reasons.items()
    }


# --- fields ---------------------------------------------------------------------------------------------------------


def _by_name(given: dict[str, Any] | None, known: dict[str, Any], check: Check) -> dict[str, Any]:
    """Fields by name of model or method, as OHIF sends them to all at once."""
    given = {name: fields for name, fields in (given or {}).items() if name != "client_id"}
    if unknown := [name[:100] for name in given if name not in known]:
        names = ", ".join(known)
        raise HTTPException(422, f"params, {unknown[0]!a}: there is no such name; known are {names}.")
    return {name: check(fields, f"params, {name}") for name, fields in given.items()}


def _json_text(name: str, check: Check = lambda given: given) -> Check:
    return lambda text: json.dumps(check(json_object(text, name)))


def _plain_file(file: UploadFile | None) -> UploadFile | None:
    """An uploaded file, whose name becomes part of a path."""
    if file is not None and file.filename:
        file.filename = plain_name(re.split(r"[/\\]", file.filename)[-1], "file name")
    return file


def _checksum(text: str | None) -> str | None:
    if text and not _CHECKSUM.fullmatch(text):
        raise HTTPException(422, "check_sum must be SHA256:, SHA512: or MD5: followed by hexadecimal digits.")
    return text
