"""How the server was started, as far as MONAI Label does not tell the app."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass

from monailabel.config import settings

__all__ = ["NO_WORKERS", "Start", "refuse_workers", "started", "warn_if_open"]

logger = logging.getLogger(__name__)

NO_WORKERS = (
    "--workers (or WEB_CONCURRENCY): leave it out. The server must be one process, because it keeps networks, sessions "
    "and trainings in its memory."
)
_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True)
class Start:
    """Options of ``monailabel start_server``.

    Args:
        host: it listens on.
        root_path: that a reverse proxy has before the server's own paths, without a slash at the end.
        workers: processes.
    """

    host: str
    root_path: str
    workers: int


def started(words: list[str] | None = None) -> Start:
    """The options of this process.

    Args:
        words: its arguments, those of the process unless given.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", "--host", default="0.0.0.0")
    parser.add_argument("--root_path", default="")
    parser.add_argument("--workers", type=int, default=os.environ.get("WEB_CONCURRENCY", 1))  # as uvicorn has it
    known, _ = parser.parse_known_args(sys.argv[1:] if words is None else words)
    return Start(known.host, known.root_path.rstrip("/"), known.workers)


def warn_if_open(start: Start) -> None:
    """Say in one line that other machines may do everything."""
    if not start.host.startswith(_LOOPBACK) and not settings.MONAI_LABEL_AUTH_ENABLE:
        logger.warning(
            "NO AUTHENTICATION: the server listens on %s, and everybody who reaches port %s can read, change and "
            "remove images, labels and models. Use --host 127.0.0.1, or logins (docs/administrator.md, "
            "Authentication).",
            start.host,
            settings.MONAI_LABEL_SERVER_PORT,
        )


def refuse_workers() -> None:
    """End this process and its parent if uvicorn runs several server processes; only such processes load the app.

    A process of ``monailabel start_server`` comes here if it has imported MONAI Label before uvicorn kills it.
    """
    parent = multiprocessing.parent_process()
    if parent is None or started().workers < 2:
        return
    logger.error(NO_WORKERS)
    os.kill(parent.pid, signal.SIGTERM)
    os._exit(3)  # uvicorn's code for a start that failed; an exception would be logged with a traceback of 40 lines
