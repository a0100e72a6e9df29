"""Requests for every route and field of a running server, each with something wrong in one place."""

from __future__ import annotations

from typing import Any

import numpy as np

from .files import Files
from .payloads import KINDS, Raw, payload
from .routes import DEEP, HEADERS, INNER, JSON_TEXT, POINTS, Operation
from .store import STORE_PATHS, Store
from .wire import Part, Shot, as_json, multipart, quoted, related

__all__ = ["Aim"]

_BODIES = (
    b"1e999",
    b"NaN",
    b'"\\ud800"',
    b"[NaN]",
    b'{"a": NaN}',
    b'{"\\udfff": 1}',
    b"null",
    b"[]",
    b"\xff",
    b"[" * 5000,
)


class Aim:
    """Makes requests, every one from a good one with one or two payloads in it.

    Args:
        operations: of the server.
        files: to upload.
        guarded: images whose labels must survive; nothing asks to delete them.
        spare: images that may be deleted.
        mark: file that shows that an expression was evaluated.
        rng: chooses.
        store: where the images are series of a DICOM store.
    """

    def __init__(
        self,
        operations: list[Operation],
        files: Files,
        guarded: list[str],
        spare: list[str],
        mark: str,
        rng: np.random.Generator,
        store: Store | None = None,
    ) -> None:
        self.store = store
        if store:
            adding = Operation("POST", "/proxy/dicom/wado/{path}", ["path"], [], form=[*store.fields], files=["dicom"])
            operations = 5 * [adding] + [adding if o.route == adding.route else o for o in operations]
        self.operations = operations + 3 * [o for o in operations if o.path in DEEP and o.method in ("POST", "PUT")]
        self.operations += 16 * [o for o in operations if o.path == "/infer/{model}"]  # the most fields of all
        self.files = files
        self.guarded, self.spare = guarded, spare
        self.mark = mark
        self.rng = rng
        self.session = "none"
        self.image = files.good["image"][1]

    def shot(self, number: int) -> Shot:
        """The request of a number; numbers in a row go through all routes."""
        operation = self.operations[number % len(self.operations)]
        values = {name: self._good(operation, name) for name in [*operation.inside, *operation.query]}
        form = {name: self._good(operation, name) for name in operation.form}
        if values.get("model") in ("hippocampus_prompt", "hippocampus_propagate") and "params" in form:
            form["params"] = dict(POINTS)
        body: Any = {}
        # an image of the server, or one that is sent along; a mask for models that take none now and then
        skipped = {"file"} if operation.path == "/infer/{model}" and self.rng.random() < 0.7 else set()
        skipped |= {"label"} if operation.path == "/infer/{model}" and self.rng.random() < 0.9 else set()
        files = {name: self._file(operation, name, values) for name in operation.files if name not in skipped}
        shot = Shot(operation.route, operation.method, "", inside=tuple(operation.inside))
        headers: list[tuple[str, str | bytes]] = []

        ways = ["good"] * 2 + ["field"] * 6 + ["header"] + (["file"] * 3 if files else []) + ["structure"]
        way = ways[self.rng.integers(len(ways))]
        raw: bytes | None = None
        if way == "good":
            shot.field = "-"
        elif way == "header":
            headers, shot.expects_refusal = HEADERS[self.rng.integers(len(HEADERS))]
            shot.kind, shot.field, shot.shown = "header", headers[0][0][:30], str(headers[0][1])[:80]
            shot.unfinished = headers[0][0] in ("Content-Length", "Transfer-Encoding")
            only_origin = headers[0][0] == "Origin" and operation.method in ("GET", "HEAD")
            shot.expects_refusal &= not only_origin  # a browser shows such an answer only where it is allowed to
        elif way == "file":
            name = list(files)[self.rng.integers(len(files))]
            if self.rng.random() < 0.3:
                filename, content = self.files.name(self.rng), files[name][1]
                shot.kind = "file name"
            else:
                suffix = files[name][0].removeprefix(name)
                shot.kind, suffix, content = self.files.choose(self.rng, suffix, files[name][1])
                filename = f"a{suffix}"
            files[name] = (filename, content)
            shot.field, shot.shown = name, repr(filename)[:80]
        elif way == "structure":
            shot.kind = "structure"
            raw = self._broken(shot, values, form, files, operation.json)
        else:
            body = self._aim_at_a_field(operation, shot, values, form, body)

        target = operation.path
        for name in operation.inside:
            target = target.replace(f"{{{name}}}", quoted(values.get(name, "x"))[:8000] or "%20")
        query = {name: values[name] for name in values if name not in operation.inside}
        more = "&".join(f"{name}={quoted(value)}" for name, value in query.items() if value is not None)
        shot.target = target + (f"?{more}" if more else "")
        kind = ""
        if raw is not None:
            shot.body, kind = raw, "application/json" if operation.json else "multipart/form-data; boundary=attack-7c1f"
        elif operation.json:
            shot.body, kind = as_json(body), "application/json"
        elif "dicom" in files and self.store:
            headers_of = {keyword: value for keyword, value in form.items() if value is not None}
            kind, shot.body = related(self.store.instances(headers_of, files["dicom"][1]))
        elif operation.form or operation.files:
            parts = [Part(name, filename, content) for name, (filename, content) in files.items()]
            kind, shot.body = multipart({n: self._as_form(v) for n, v in form.items()}, parts)
        own = {name.lower() for name, _ in headers}
        shot.headers = [*headers, *([("Content-Type", kind)] if kind and "content-type" not in own else [])]
        return shot

    def _aim_at_a_field(
        self, operation: Operation, shot: Shot, values: dict[str, Any], form: dict[str, Any], body: Any
    ) -> Any:
        """Put a payload into one field; returns the JSON body."""
        kinds = list(KINDS)
        shot.kind = kinds[self.rng.integers(len(kinds))]
        value = payload(shot.kind, self.rng, self.mark)
        if self.store and operation.path.startswith("/proxy") and shot.kind == "path" and self.rng.random() < 0.7:
            value = STORE_PATHS[self.rng.integers(len(STORE_PATHS))]
        text = [name for name in form if name in JSON_TEXT]
        places = [*values, *form, *text, *text, *text, *(["(body)"] * 4 if operation.json else [])]
        if not places:
            values["token"] = value
            shot.field = "?token"
        else:
            shot.field = places[self.rng.integers(len(places))]
            if shot.field == "(body)":
                shot.field, body = self._into_json(operation, "(body)", body, value)
            elif shot.field in form and shot.field in JSON_TEXT:
                place = shot.field
                shot.field, form[place] = self._into_json(operation, place, form[place], value)
            elif shot.field in form:
                form[shot.field] = value
            else:
                values[shot.field] = value
        shown = bytes(value)[:80] if isinstance(value, Raw) else repr(value)[:80]
        shot.shown = str(shown)
        return body

    def _into_json(self, operation: Operation, place: str, content: Any, value: Any) -> tuple[str, Any]:
        """The place's name with the key, and the JSON with a payload at it."""
        way = self.rng.random()
        known = list(self._inner(operation))
        if "foreground" in known and self.rng.random() < 0.7:  # prompts have the most behind them
            known = list(POINTS)
        if way < 0.2 or not known:
            return place, value
        if way < 0.3:
            key = value if isinstance(value, str) else "attack"
            return f"{place}.(unknown)", {**(content if isinstance(content, dict) else {}), key: value}
        key = known[self.rng.integers(len(known))]
        good = self._inner(operation)[key]
        if isinstance(good, list) and good and isinstance(good[0], dict) and self.rng.random() < 0.5:
            part = list(good[0])[self.rng.integers(len(good[0]))]  # of a scribble, for instance
            value = [{**good[0], part: value}]
        return f"{place}.{key}", {**(content if isinstance(content, dict) else {}), key: value}

    def _broken(self, shot: Shot, values: dict, form: dict, files: dict, operation_json: bool) -> bytes | None:
        """Leave out a field, or send a body that is none; returns its bytes."""
        way = int(self.rng.integers(5))
        if operation_json and self.rng.random() < 0.5:  # what is no object, and cannot be repeated in an answer either
            raw = _BODIES[self.rng.integers(len(_BODIES))]
            shot.shown = str(raw)
            return raw
        places = [*values, *form, *files]
        if way == 0 and places:
            shot.field = places[self.rng.integers(len(places))]
            shot.shown = "left out"
            for fields in (values, form, files):
                fields.pop(shot.field, None)
            return None
        if way == 1:
            shot.shown = "garbage"
            return self.rng.bytes(2000)
        if way == 2:
            shot.shown = "cut body"
            return b'--attack-7c1f\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"a": '
        if way == 3:
            shot.shown = "2,000 parts"
            return multipart({f"a{n}": "x" for n in range(2000)}, [])[1]
        shot.shown = "empty body"
        return b""

    def _inner(self, operation: Operation) -> dict[str, Any]:
        return next((keys for prefix, keys in INNER.items() if operation.path.startswith(prefix)), {})

    def _good(self, operation: Operation, name: str) -> Any:
        """A value that the field is meant for."""
        spare = self.spare if operation.method == "DELETE" else [*self.guarded, *self.spare]
        if operation.method == "PUT" and "file" in operation.files:
            spare = ["new_0", "new_1", "new_2"]
        image = spare[self.rng.integers(len(spare))]
        models = ["hippocampus", "hippocampus_prompt", "hippocampus_propagate"]
        if operation.path.startswith(("/train", "/model", "/batch")):
            models = ["hippocampus"]
        choices: dict[str, list[Any]] = {
            "model": models,
            "strategy": ["random", "first"],
            "method": ["dice", "hd95"],
            "session_id": [self.session] if "session" in operation.path else [None],
            "image": [image],
            "label": [image],
            "id": [image],
            "tag": ["final", "original"],
            "output": ["json", "image", "all"] if operation.path.startswith("/infer") else [None, "all", "train"],
            "images": ["unlabeled"],
            "run_sync": [None],
            "enqueue": [None],
            "path": ["index.html", "studies", "x"],
            "limit_cases": [1, None],
            "lines": [10],
            "username": ["user"],
            "password": ["right"],
            "grant_type": ["password"],
        }
        if self.store and operation.path.startswith("/proxy"):
            choices["path"] = ["studies"] if operation.method == "POST" else self.store.paths
        if name in JSON_TEXT:
            return {}
        options = choices.get(name, [None])
        return options[self.rng.integers(len(options))]

    def _file(self, operation: Operation, name: str, values: dict[str, Any]) -> tuple[Any, bytes]:
        """Name and content of a file that the field is meant for."""
        if operation.path.startswith("/model"):
            return f"{name}.pt", self.files.weights
        if name == "dicom" and self.store:
            return "dicom.dcm", self.store.fresh(seg=self.rng.random() < 0.4)
        labels = self.files.labels
        is_label = name == "label"
        return f"{name}.nii.gz", labels.get(
            values.get("image"), next(iter(labels.values()))
        ) if is_label else self.image

    @staticmethod
    def _as_form(value: Any) -> Any:
        return "" if value is None else Raw(as_json(value)) if isinstance(value, dict | list) else value
