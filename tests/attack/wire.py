"""Requests as bytes, as no well-behaved client would send them."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from .payloads import Raw

__all__ = ["Answer", "Part", "Shot", "as_json", "fire", "multipart", "quoted", "related"]

_MOST_READ = 2**22  # bytes of an answer
_BOUNDARY = "attack-7c1f"


@dataclass
class Part:
    """A file of a multipart body."""

    name: str
    filename: Any
    content: bytes


@dataclass
class Shot:
    """A request as it goes out, and what is told of it.

    Attributes:
        route: method and path of the server's own table.
        field: that holds the payload.
        kind: of the payload.
        shown: the payload, short.
        expects_refusal: an answer below 400 is a fault.
        unfinished: the server has a reason to wait for more, so no answer is none.
        inside: fields that are part of the path.
        login: whose token it bears, see :class:`~.logins.Logins`.
        claim: field and kind of a payload in the token.
    """

    route: str
    method: str
    target: str
    headers: list[tuple[str, str | bytes]] = field(default_factory=list)
    body: bytes = b""
    field: str = ""
    kind: str = "good"
    shown: str = ""
    expects_refusal: bool = False
    unfinished: bool = False
    inside: tuple[str, ...] = ()
    login: str = ""
    claim: tuple[str, str] | None = None


@dataclass
class Answer:
    """What came back; status 0 for none within the time limit, -1 for a connection that the server ended."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def as_json(value: Any) -> bytes:
    """JSON of a value that may hold :class:`Raw` in places."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, dict):
        return b"{" + b",".join(as_json(str(k)) + b":" + as_json(v) for k, v in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(as_json, value)) + b"]"
    return json.dumps(value).encode()


def quoted(value: Any) -> str:
    """A value in a path or query."""
    if isinstance(value, Raw):
        return quote(bytes(value)[:20_000], safe="")
    text = value if isinstance(value, str) else as_json(value).decode()
    return quote(text[:20_000], safe="")


def _text(value: Any) -> bytes:
    return bytes(value) if isinstance(value, Raw) else value.encode() if isinstance(value, str) else as_json(value)


def multipart(fields: dict[str, Any], parts: list[Part]) -> tuple[str, bytes]:
    """Content type and body."""
    body = b""
    for name, value in fields.items():
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += head.encode() + _text(value) + b"\r\n"
    for part in parts:
        name = _text(part.filename).replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{part.name}"; filename="'.encode() + name
        body += head + b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + part.content + b"\r\n"
    return f"multipart/form-data; boundary={_BOUNDARY}", body + f"--{_BOUNDARY}--\r\n".encode()


def related(instances: list[bytes]) -> tuple[str, bytes]:
    """Content type and body of what adds to a DICOM store."""
    head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + content + b"\r\n" for content in instances) + f"--{_BOUNDARY}--\r\n".encode()
    return f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}', body


def fire(port: int, shot: Shot, seconds: float = 60) -> Answer:
    """Send a request to the server on loopback and read its answer.

    Args:
        port: of 127.0.0.1.
        shot: what is sent; ``Host`` and ``Content-Length`` are added unless it has its own.
        seconds: without a byte after which the server counts as hung.
    """
    own = {name.lower() for name, _ in shot.headers}
    headers: list[tuple[str, str | bytes]] = [("Connection", "close"), *shot.headers]
    if "host" not in own:
        headers.append(("Host", f"127.0.0.1:{port}"))
    if "content-length" not in own and (shot.body or shot.method in ("POST", "PUT")):
        headers.append(("Content-Length", str(len(shot.body))))
    lines = [f"{shot.method} {shot.target} HTTP/1.1".encode()]
    lines += [name.encode() + b": " + (v if isinstance(v, bytes) else v.encode()) for name, v in headers]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1 if shot.unfinished else seconds) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused early; the answer may be there
                connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + shot.body)
            response = http.client.HTTPResponse(connection, method=shot.method)
            response.begin()
            return Answer(response.status, dict(response.getheaders()), response.read(_MOST_READ))
    except TimeoutError:
        return Answer(0)
    except (OSError, http.client.HTTPException):
        return Answer(-1)
