"""What happens to a server beside odd requests: many clients at once, slow ones, a full disk, a stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import requests

from ..integration.server import Server, fill

__all__ = ["at_once", "odd_series", "slow_clients", "stop_while_saving", "with_a_full_disk"]


def at_once(server: Server, guarded: list[str], spare: list[str], rng: np.random.Generator) -> dict[str, int]:
    """Infer, train, delete, save, score and ask at once, from eight threads; returns the 5xx by their count."""
    label, image = server.labels, server.studies
    json_of: dict[str, Callable[[], requests.Response]] = {
        "POST /infer": lambda: server.infer("hippocampus", guarded[0]),
        "POST /infer with a prompt": lambda: server.infer("hippocampus_prompt", guarded[1], foreground=[[10, 15, 5]]),
        "POST /train": lambda: server.request("POST", "/train/hippocampus", json={"max_epochs": 1}),
        "DELETE /train": lambda: server.request("DELETE", "/train/"),
        "PUT /datastore/label": lambda: server.save_label(guarded[0], label / f"{guarded[0]}.nii.gz", client_id="b"),
        "PUT /datastore/label of a spare": lambda: server.save_label(spare[0], label / f"{spare[0]}.nii.gz"),
        "PUT /datastore/image": lambda: server.add_image(f"new_{rng.integers(3)}", image / f"{guarded[1]}.nii.gz"),
        "DELETE /datastore/image": lambda: server.request(
            "DELETE", "/datastore/image", params={"id": f"new_{rng.integers(3)}"}
        ),
        "DELETE /datastore/label": lambda: server.request(
            "DELETE", "/datastore/label", params={"id": spare[0], "tag": "final"}
        ),
        "POST /activelearning": lambda: server.request("POST", "/activelearning/random", json={"client_id": "c"}),
        "PUT /datastore/image/info": lambda: server.request(
            "PUT", "/datastore/image/info", params={"image": guarded[1]}, data={"info": json.dumps({"a": 1})}
        ),
        "POST /scoring": lambda: server.request("POST", "/scoring/dice", json={}),
        "GET /info": lambda: server.request("GET", "/info/"),
        "GET /datastore": lambda: server.request("GET", "/datastore/", params={"output": "all"}),
    }
    names = [list(json_of)[n] for n in rng.permutation(np.repeat(np.arange(len(json_of)), 3))]
    faults: dict[str, int] = {}

    def ask(name: str) -> None:
        try:
            status = json_of[name]().status_code
        except requests.RequestException:
            status = 0
        if status >= 500 or status == 0:
            faults[f"{name} -> {status}"] = faults.get(f"{name} -> {status}", 0) + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, names))
    return faults


def odd_series(server: Server, names: list[str], guarded: str) -> list[str]:
    """Segment, save and fetch series of a store whose headers are odd; returns what is answered 5xx."""
    faults = []
    named = json.dumps({"label_info": [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]})
    for name in names:
        own = server.labels / f"{name}.nii.gz"
        label = (own if own.is_file() else server.labels / f"{guarded}.nii.gz").read_bytes()
        query = {"image": name, "label": name, "tag": "final"}
        for method, path, options in (
            ("POST", "/infer/hippocampus", {"params": {**query, "output": "image"}}),
            (
                "PUT",
                "/datastore/label",
                {"params": query, "data": {"params": named}, "files": {"label": ("l.nii.gz", label)}},
            ),
            ("POST", "/infer/hippocampus", {"params": {**query, "output": "dicom_seg"}, "data": {"params": named}}),
            ("GET", "/datastore/image", {"params": query}),
            ("GET", "/datastore/image/info", {"params": query}),
            ("GET", "/datastore/label", {"params": query}),
            ("GET", "/datastore/label/info", {"params": query}),
        ):
            try:
                answer = server.request(method, path, **options)
                status, text = answer.status_code, answer.text[:200]
            except requests.RequestException as err:
                status, text = 0, type(err).__name__
            if status >= 500 or status == 0:
                faults.append(f"odd series: {method} {path} -> {status} {text}")
    return faults


def slow_clients(server: Server, count: int = 6) -> list[str]:
    """Bodies that trickle and are dropped, and headers that never end; the server answers others meanwhile."""
    port = int(server.url.rsplit(":", 1)[1])
    head = f"Host: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 10000000\r\n"
    lines = [
        "PUT /datastore/label?image=phantom_000",
        "PUT /session/",
        "PUT /model/x",
        "POST /infer/hippocampus",
    ]
    connections = []
    try:
        for number in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            connection.sendall(f"{lines[number % len(lines)]} HTTP/1.1\r\n{head}".encode())
            connections.append(connection)
        for turn in range(5):
            for number, connection in enumerate(connections):
                more = b"X-A: b\r\n" if number == 0 else (b"\r\n--b\r\n" if turn == 0 else b"Content-")
                with suppress(OSError):  # refused meanwhile, as it may
                    connection.sendall(more)
            time.sleep(0.05)
        try:
            answer = server.request("GET", "/info/")
            return [] if answer.ok else [f"beside slow clients GET /info/ is answered {answer.status_code}"]
        except requests.RequestException as err:
            return [f"beside slow clients GET /info/ is not answered: {type(err).__name__}"]
    finally:
        for connection in connections:
            connection.close()


def stop_while_saving(server: Server, guarded: list[str], after: float) -> None:
    """Save labels and information from four threads, and end the server by SIGTERM meanwhile."""

    def save(number: int) -> None:
        name = guarded[number % len(guarded)]
        try:
            if number % 2:
                server.save_label(name, server.labels / f"{name}.nii.gz", client_id=str(number))
            else:
                server.request("PUT", "/datastore/image/info", params={"image": name}, data={"info": '{"a": 1}'})
        except requests.RequestException:  # it stops
            pass

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(save, number) for number in range(60)]
        time.sleep(after)
        server.process.send_signal(signal.SIGTERM)
        for future in sent:
            future.result()
    try:
        server.process.wait(30)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def with_a_full_disk(server: Server, disk: Path, guarded: list[str]) -> list[str]:
    """Fill the server's only disk, ask it to write, and free the disk again; returns what was not answered 507."""
    filler = fill(disk)
    name, other = guarded[:2]
    image = server.labels / f"{name}.nii.gz"
    large = bytes(3_000_000)
    asked: dict[str, Callable[[], requests.Response]] = {
        "PUT /datastore/label": lambda: server.save_label(other, server.labels / f"{other}.nii.gz"),
        "PUT /datastore/image": lambda: server.add_image("full", image),
        "PUT /datastore/image/info": lambda: server.request(
            "PUT", "/datastore/image/info", params={"image": name}, data={"info": json.dumps({"a": "b" * 10_000})}
        ),
        "PUT /session": lambda: server.request("PUT", "/session/", files={"files": ("a.nii.gz", large)}),
        "POST /infer with a file": lambda: server.request(
            "POST", "/infer/hippocampus", files={"file": ("a.nii", large)}
        ),
        "POST /infer": lambda: server.infer("hippocampus", name),
    }
    faults = []
    try:
        for what, request in asked.items():
            try:
                status = request().status_code
            except requests.RequestException as err:
                status = type(err).__name__
            if status not in (507, 422, 413, 405) and not (isinstance(status, int) and status < 300):
                faults.append(f"full disk: {what} -> {status}")
    finally:
        filler.unlink()
    return faults
