"""What each request passes before MONAI Label sees it: host, origin, endpoint, login, size."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

import jwt
import requests
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from monailabel.config import settings
from monailabel.endpoints.user import auth
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.browsers import allowed_origins, check_host, check_origin
from lib.routes import ROUTES, Route
from medsaga.failures import nothing_can_be_written

__all__ = ["Gate", "guard", "routes_of"]

logger = logging.getLogger(__name__)

_FIELD_BYTES = 2**20


def max_upload_bytes() -> int:
    """Most bytes of a request with a file: ``MEDSAGA_MAX_UPLOAD_GB``, 2 by default."""
    return int(float(os.environ.get("MEDSAGA_MAX_UPLOAD_GB", "2")) * 10**9)


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Methods and paths of an app, in the order in which it tries them; a folder of files has the method ``*``."""
    return [
        (method, route.path)
        for route in iter_route_contexts(app.routes)
        for method in sorted(getattr(route.original_route, "methods", None) or ["*"])
    ]


class Gate:
    """ASGI middleware.

    Args:
        app: what comes after it.
        routes: of the server, see :func:`routes_of`.
        bound: name of the address that the server was told to listen on.
    """

    def __init__(self, app: ASGIApp, routes: list[tuple[str, str]], bound: str) -> None:
        self.app = app
        self.bound = "" if bound in ("0.0.0.0", "::") else bound.lower()  # those are no names of a machine
        self._rules: list[tuple[str, Any, Route | None]] = []
        for method, path in routes:
            rule = ROUTES.get((method, path))
            if rule is None:
                logger.warning(
                    "%s %s is closed, because it is not in the table of endpoints (lib/routes.py)", method, path
                )
            pattern = compile_path(f"{path}/{{path:path}}" if method == "*" else path)[0]
            self._rules.append((method, pattern, rule))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            most = await self._admit(scope)
        except HTTPException as err:
            answer = JSONResponse({"detail": err.detail}, err.status_code, err.headers)
            return await answer(scope, receive, send)
        await self.app(scope, _bounded(receive, most), send)

    async def _admit(self, scope: Scope) -> int:
        """Raise HTTPException for a request that is refused; else return the most bytes that it may send."""
        headers = Headers(scope=scope)
        check_host(headers, {self.bound, (scope.get("server") or ("",))[0]})
        check_origin(scope["method"], headers)
        if scope["method"] == "OPTIONS":
            return 0
        rule, path = self._rule(scope)
        if rule is None:
            return 0  # the app behind the gate does not know the address either
        if rule.who == "nobody":
            raise HTTPException(404, f"This endpoint is {rule.checked}.")
        if rule.login and not settings.MONAI_LABEL_AUTH_ENABLE:
            raise HTTPException(
                403, "Only administrators who have logged in may use this, but this server has no logins."
            )
        if settings.MONAI_LABEL_AUTH_ENABLE and rule.who != "anybody":
            await run_sync(_check_role, headers.get("authorization", ""), rule.who)
        if rule.check:
            rule.check(path)
        most = max_upload_bytes() if rule.takes == "file" else _FIELD_BYTES
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        return most

    def _rule(self, scope: Scope) -> tuple[Route | None, str]:
        """The rule of the endpoint that will answer, and the path after its own."""
        root, path = scope.get("root_path", ""), scope["path"]
        path = path[len(root) :] if path == root or path.startswith(f"{root}/") else path
        for method, pattern, rule in self._rules:
            match = pattern.match(path) if method in (scope["method"], "*") else None
            if match:
                if rule is None:
                    raise HTTPException(404, "This endpoint is closed.")
                return rule, match.groupdict().get("path", "")
        return None, ""


def _check_role(authorization: str, who: str) -> None:
    scheme, _, token = authorization.partition(" ")
    try:
        user = auth.from_token(token if scheme.lower() == "bearer" else "")
    except requests.RequestException as err:
        raise HTTPException(502, "The login server does not answer.") from err
    except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError) as err:  # or a token without name or roles
        raise HTTPException(401, "Log in first.", {"WWW-Authenticate": "Bearer"}) from err
    role = getattr(settings, f"MONAI_LABEL_AUTH_ROLE_{who.upper()}")
    if role not in user.roles:
        raise HTTPException(403, f"This needs the role {role}.")


def _too_large(most: int) -> HTTPException:
    setting = "" if most == _FIELD_BYTES else " (MEDSAGA_MAX_UPLOAD_GB)"
    return HTTPException(413, f"The request is larger than {most / 1e6:g} MB{setting}.")


def _bounded(receive: Receive, most: int) -> Receive:
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise _too_large(most)
        return message

    return bounded


async def _answer_fault(request: Request, err: Exception) -> JSONResponse:
    """Answer faults that are not of this program: another server does not answer, or a disk is full."""
    if isinstance(err, requests.RequestException):
        status, detail = 502, "The DICOM store does not answer."
        if request.scope["path"].endswith("/auth/token"):
            detail = "The login server does not answer."
            if err.response is not None and 400 <= err.response.status_code < 500:
                status, detail = 401, "The login server refuses this name and password."
    elif nothing_can_be_written(err):
        status, detail = 507, "No space left on the server's disk for what was sent."
    elif isinstance(err, OSError) and err.errno == errno.ENAMETOOLONG:
        status, detail = 404, "There is no such file: its name is too long."
    else:
        raise err
    return JSONResponse({"detail": detail}, status)


async def _answer_refusal(request: Request, err: StarletteHTTPException) -> Response:
    """Answer a refusal; FastAPI's 400 may mean that it could not write what was sent to the disk."""
    if err.status_code == 400 and nothing_can_be_written(err):
        return await _answer_fault(request, err)
    return await http_exception_handler(request, err)


async def _answer_invalid(request: Request, err: RequestValidationError) -> JSONResponse:
    """Leave out the refused values: FastAPI repeats even those that JSON cannot hold (NaN, half a surrogate pair)."""
    detail = [
        {key: str(error[key])[:500] for key in ("type", "msg")} | {"loc": _place(error["loc"])}
        for error in err.errors()
    ]
    return JSONResponse({"detail": detail}, 422)


def _place(loc: tuple) -> list[str | int]:
    return [part if isinstance(part, int) else str(part)[:200].encode(errors="replace").decode() for part in loc]


def guard(app: FastAPI, host: str) -> None:
    """Put the gate before an app that has started already; it replaces the app's own CORS rules for all web pages.

    Args:
        app: MONAI Label's.
        host: it was told to listen on.
    """
    app.user_middleware = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    if origins := sorted(allowed_origins()):
        cors = {"allow_origins": origins, "allow_methods": ["*"], "allow_headers": ["*"], "allow_credentials": True}
        app.user_middleware.insert(0, Middleware(CORSMiddleware, **cors))
    app.user_middleware.insert(0, Middleware(Gate, routes=routes_of(app), bound=host))
    app.exception_handlers[OSError] = _answer_fault
    app.exception_handlers[StarletteHTTPException] = _answer_refusal
    app.exception_handlers[RequestValidationError] = _answer_invalid
    app.middleware_stack = app.build_middleware_stack()
