"""Which web pages may call the server, and under which names it answers.

Otherwise a page that an annotator has open in another tab could send requests to a server on his machine. If the page
points a host name of its own to that machine, it could also read the answers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import HTTPException

__all__ = ["allowed_origins", "check_host", "check_origin"]

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def _setting(name: str) -> set[str]:
    return {part.strip().lower().rstrip("/") for part in os.environ.get(name, "").split(",") if part.strip()}


def allowed_origins() -> set[str]:
    """Other pages that may call the server: ``MEDSAGA_ORIGINS``, as ``https://HOST:PORT``, separated by commas."""
    return _setting("MEDSAGA_ORIGINS")


def check_host(headers: Mapping[str, str], bound: set[str]) -> None:
    """Refuse a request for another machine: its host is none of loopback, ``bound`` and ``MEDSAGA_HOSTS``.

    Args:
        headers: of the request, their names in small letters.
        bound: names and addresses that the server listens on.

    Raises:
        HTTPException: 421 for a host that is not the server's, 400 without one.
    """
    host = headers.get("host", "")
    name = _name(host)
    if not name:
        raise HTTPException(400, "The request has no Host header.")
    if name not in _LOOPBACK | bound | _setting("MEDSAGA_HOSTS"):
        raise HTTPException(
            421, f"This server does not answer for the host {name[:100]!a}; MEDSAGA_HOSTS can allow it."
        )


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """Refuse a request of a foreign web page. Programs other than browsers send no origin.

    Args:
        method: of the request.
        headers: of the request, their names in small letters.

    Raises:
        HTTPException: 403 for a page of another origin.
    """
    origin = headers.get("origin", "").lower()
    if origin:
        own = urlsplit(origin).netloc == headers.get("host", "").lower() and origin.startswith(("http://", "https://"))
        if not own and origin not in allowed_origins():
            raise HTTPException(
                403, f"Pages of {origin[:100]!a} may not call this server; MEDSAGA_ORIGINS can allow it."
            )
    elif headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # browsers send no origin with pictures and scripts; links from elsewhere may open a page
        opened = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if not (opened and headers.get("sec-fetch-dest") == "document"):
            raise HTTPException(403, "Pages of other sites may not call this server; MEDSAGA_ORIGINS can allow it.")


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host.strip()}").hostname or "").lower()
    except ValueError:
        return ""
