"""Processes that run ``python -m MODULE`` or ``-c CODE`` as new ones do, without the seconds that imports take.

One process for each of pytest's has imported the libraries, and nothing of this project. It waits, and a command is a
fork of it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

__all__ = ["Fork", "run", "start"]

# not monailabel itself, which reads its settings from the environment when it is imported
_LIBRARIES = ("monai.bundle", "monai.engines", "nibabel", "itk", "pydicom", "fastapi", "uvicorn", "timm", "tensorboard")


class Fork:
    """A process, with the interface of :class:`subprocess.Popen` as far as tests use it."""

    def __init__(self, args: list[str], pid: int) -> None:
        self.args, self.pid, self.returncode = args, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _parent().ask(wait=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(words: list[str], cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with the output apart from the errors; more in :func:`start`."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        code = start(words, output, cwd, dict(os.environ), errors=errors).wait(timeout)
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


def start(
    words: list[str],
    output: Path,
    cwd: Path,
    env: dict[str, str],
    session: bool = False,
    errors: Path | None = None,
) -> Fork:
    """Start ``python [-W ignore] -m MODULE ARGUMENTS``, or with ``-c CODE``.

    Args:
        words: the command, this Python first.
        output: file to which all output is added.
        cwd: its working directory.
        env: its environment.
        session: whether it gets a session of its own.
        errors: file for what it writes to stderr; None adds it to the output.
    """
    quiet = words[1:3] == ["-W", "ignore"]
    option, *arguments = words[3:] if quiet else words[1:]
    assert words[0] == sys.executable and option in ("-m", "-c"), words
    request = {"quiet": quiet, "option": option, "arguments": arguments, "cwd": str(cwd), "session": session}
    request |= {"output": str(output), "errors": str(errors or output)}
    network = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"  # a test's own, where it has one
    return Fork(words, _parent().ask(**request, env=env, network=network))


class _Parent:
    """The process that is forked, seen from the tests'."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._lock = threading.Lock()
        atexit.register(self._process.stdin.close)

    def ask(self, **request: object) -> int | None:
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


@functools.cache
def _parent() -> _Parent:
    return _Parent()


def _serve() -> dict | None:
    """Answer requests in the first process; in a fork of it return what it has to run."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):  # MONAI Label's may be absent
            importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            answers.close()
            return request
        print(json.dumps(answer), file=answers)
    return None


def _become(request: dict) -> None:
    """Make this fork what a new process would be."""
    import numpy as np

    if request["session"]:
        os.setsid()
    if not os.path.samefile(request["network"], "/proc/self/ns/net"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(os.open(request["network"], os.O_RDONLY | os.O_CLOEXEC), 0):
            raise OSError(ctypes.get_errno(), "cannot enter the test's network")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # this file's folder is the first; those of PYTHONPATH follow
    before = [path for path in _PYTHONPATH if path in sys.path]
    rest = [path for path in sys.path[1:] if path not in before]
    sys.path[:] = [request["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *rest]
    sys.argv[:] = request["arguments"]
    np.random.seed()  # noqa: NPY002, as what forks share is the legacy generator
    if request["quiet"]:
        sys.warnoptions[:] = ["ignore"]
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    _PYTHONPATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if (_request := _serve()) is not None:
        _become(_request)
        if _request["option"] == "-m":
            runpy.run_module(_request["arguments"][0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            exec(_request["arguments"][0], {"__name__": "__main__"})
