"""What a server can be asked: its routes, those that its schema hides, and the fields that its code takes from JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DEEP", "HEADERS", "INNER", "JSON_TEXT", "POINTS", "Operation", "operations"]

# routes that the server has and its schema hides
_HIDDEN: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("POST", "/reload", ()),
    ("GET", "/", ()),
    ("GET", "/docs", ()),
    ("GET", "/openapi.json", ()),
    ("GET", "/favicon.ico", ()),
    ("GET", "/static/{path}", ()),
    ("GET", "/ohif/{path}", ()),
    *((m, f"/proxy/dicom/{op}{{path}}", ()) for m in ("GET", "POST") for op in ("", "wado/", "qido/", "stow/")),
    ("DELETE", "/datastore/", ("id",)),
    ("POST", "/train/", ("run_sync",)),
    ("POST", "/scoring/", ("run_sync",)),
    ("GET", "/auth/", ()),
    ("POST", "/auth/token", ()),
    ("GET", "/auth/token/valid", ()),
    ("GET", "/{path}", ()),
)
# where most fields are, and what has the most behind it
DEEP = ("/infer/{model}", "/train/{model}", "/batch/infer/{model}", "/activelearning/{strategy}", "/datastore/label")
DEEP += ("/datastore/image", "/datastore/image/info", "/datastore/label/info", "/session/", "/model/{model}")
JSON_TEXT = ("params", "info", "wsi")  # form fields that hold JSON
POINTS = {"foreground": [[10, 15, 5]], "background": [[1, 1, 1]], "roi": [1, 20, 1, 20, 1, 10], "label": "anterior"}
POINTS |= {"plane": "sagittal", "replace": True, "scribbles": [{"inside": True, "points": [[9, 14, 5], [12, 16, 5]]}]}
_TASK = {"device": "cpu", "client_id": "ann", "model": "hippocampus", "gpus": "all", "multi_gpu": False, "name": "a"}
# what clients send, and what MONAI Label's own code takes out of a request
INNER: dict[str, dict[str, Any]] = {
    "/infer": {
        **_TASK,
        **POINTS,
        "image": "phantom_003",
        "result_extension": ".nii.gz",
        "result_dtype": "uint8",
        "result_compress": True,
        "result_write_to_file": True,
        "largest_cc": False,
        "model_filename": "model.pt",
        "save_label": False,
        "label_tag": "original",
        "label_info": [{"name": "anterior", "idx": 1}],
        "logging": "INFO",
        "timeout": 100,
        "cache_transforms": True,
        "cache_transforms_ttl": 10,
        "slice": 3,
        "location": [0, 0],
        "size": [64, 64],
        "tile_size": [64, 64],
        "level": 0,
        "min_poly_area": 10,
        "wsi_tiles": [],
        "output": "json",
        "roi_size": [8, 8, 8],
        "description": "a",
        "max_workers": 1,
        "session": {},
        "session_id": "x",
        "params": {"device": "cpu"},
        "user": "ann",
        "bundle_path": "x",
    },
    "/train": {
        **_TASK,
        "pretrained": True,
        "max_epochs": 1,
        "train_split": 0.5,
        "val_split": 0.2,
        "bundle_path": "x",
        "local_rank": 0,
        "run_id": "run",
        "tracking": "mlflow",
        "tracking_uri": "x",
        "tracking_experiment_name": "a",
        "tracking_run_name": "a",
        "train_ds": [],
        "val_ds": [],
        "force_multi_gpu": False,
        "distributed_backend": "gloo",
        "distributed_url": "env://",
        "early_stop_patience": 0,
        "hippocampus": {"device": "cpu"},
        "bundle_root": "x",
        "network_def#encoder": "vit_test",
        "train#dataset#data": [],
    },
    "/batch": {**_TASK, "images": "unlabeled", "max_workers": 1, "max_batch_size": 1, "save_label": True}
    | {"label_tag": "original", "logging": "INFO", "result_extension": ".nii.gz", "output": "json", "timeout": 10},
    "/scoring": {**_TASK, "y": "final", "y_pred": "original", "method": "dice", "dice": {"y": "final"}},
    "/activelearning": {**_TASK, "label_tag": "final", "labels": ["anterior"], "seed": 1, "budget": 1, "strategy": "x"}
    | {"max_samples": 1, "num_samples": 1, "image": "phantom_000", "slices": 2, "reset_state": True},
    "/datastore": {"client_id": "ann", "user": "ann", "ts": 1, "name": "a", "model": "hippocampus", "version": "v"}
    | {"label_info": [{"name": "anterior", "idx": 1, "segmentIndex": 1, "value": 1, "color": [1, 2, 3]}]}
    | {"params": {"label_names": {"anterior": 1}}, "label_names": {"anterior": 1}, "models": ["hippocampus"]}
    | {"strategy": {"first": {"ts": 1, "client_id": "ann"}}, "checksum": "SHA256:0", "tag": "final", "score": 0.5},
}
HEADERS: list[tuple[list[tuple[str, str | bytes]], bool]] = [
    ([("Origin", "http://evil.example")], True),
    ([("Origin", "null")], True),
    ([("Origin", "http://127.0.0.1.evil.example")], True),
    ([("Origin", "http://localhost.evil.example:8000")], True),
    ([("Origin", "file://")], True),
    ([("Host", "evil.example")], True),
    ([("Host", "evil.example:8000"), ("Origin", "http://evil.example:8000")], True),
    ([("Host", "127.0.0.1.evil.example")], True),
    ([("Host", "")], False),
    ([("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Prefix", "/../../x")], False),
    ([("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-Proto", "$evil")], False),
    ([("Content-Type", "text/plain")], False),
    ([("Content-Type", "application/json; charset=utf-7")], False),
    ([("Content-Type", "multipart/form-data")], False),
    ([("Content-Type", "multipart/form-data; boundary=" + "a" * 5000)], False),
    ([("Content-Type", "application/x-www-form-urlencoded")], False),
    ([("Content-Length", "-1")], False),
    ([("Content-Length", "99999999999999999999")], False),
    ([("Transfer-Encoding", "chunked")], False),
    ([("Authorization", "Bearer " + "a" * 5000)], False),
    ([("Authorization", "Bearer ..")], False),
    ([("Cookie", "a" * 30_000)], False),
    ([("Range", "bytes=0-0,1-1,-5," * 300)], False),
    ([("Range", "bytes=a-b")], False),
    ([("If-Range", b"\xff")], False),
    ([("Accept-Encoding", b"\xff\xfe, gzip;q=9999")], False),
    ([("X-" + "a" * 5000, "a")], False),
]


@dataclass
class Operation:
    """A method of a path, and what it takes."""

    method: str
    path: str
    inside: list[str] = field(default_factory=list)
    query: list[str] = field(default_factory=list)
    json: bool = False
    form: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"


def operations(schema: dict[str, Any]) -> list[Operation]:
    """All that a server's OpenAPI schema lists, and the routes that it hides."""
    found = []
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            operation = Operation(method.upper(), path)
            for parameter in told.get("parameters", []):
                if parameter["name"] != "token":  # of every route, and looked at by none without users
                    places = {"path": operation.inside, "query": operation.query}
                    places.get(parameter["in"], []).append(parameter["name"])
            for kind, content in told.get("requestBody", {}).get("content", {}).items():
                if kind == "application/json":
                    operation.json = True
                    continue
                body = content["schema"]
                body = schema["components"]["schemas"][body["$ref"].split("/")[-1]] if "$ref" in body else body
                for name, about in body.get("properties", {}).items():
                    text = json.dumps(about)
                    is_file = "binary" in text or "octet-stream" in text
                    (operation.files if is_file else operation.form).append(name)
            found.append(operation)
    for method, path, query in _HIDDEN:
        inside = ["path"] if "{path}" in path else []
        found.append(Operation(method, path, inside, list(query), json=method == "POST"))
    found.append(Operation("PUT", "/datastore/", [], ["image"], form=["params"], files=["file"]))
    found.append(Operation("PUT", "/datastore/updatelabelinfo", [], ["label", "tag"], form=["params"]))
    wsi = Operation("POST", "/infer/wsi/{model}", ["model"], ["image", "session_id", "output"], json=True)
    return [*found, wsi]
