"""Processes that run ``python -m MODULE`` or ``-c CODE`` as new ones do, without the seconds that imports take.

One process for each of pytest's has imported the libraries, and nothing of this project. It waits, and a command is a
fork of it. Beside a server a further fork waits, of which the trainings that the server starts are forks; beside other
commands one of which the processes of :mod:`medsaga.processes` are.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import inspect
import json
import multiprocessing.forkserver
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Fork", "free_port", "ranks", "run", "start"]

# not monailabel itself, which reads its settings from the environment when it is imported
_LIBRARIES = ("monai.bundle", "monai.engines", "nibabel", "itk", "pydicom", "fastapi", "uvicorn", "timm", "tensorboard")
_LIBRARIES += ("fire", "torch.distributed.checkpoint", "pydicom.sr.codedict")


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
    request = _command(words, str(cwd), env, [os.devnull, str(output), str(errors or output)])
    network = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"  # a test's own, where it has one
    return Fork(words, _parent().ask(**request, session=session, network=network))


def _command(words: list[str], cwd: str, env: dict[str, str], files: list[str]) -> dict:
    quiet = words[1:3] == ["-W", "ignore"]
    option, *arguments = words[3:] if quiet else words[1:]
    assert words[0] == sys.executable and option in ("-m", "-c"), words
    return {"quiet": quiet, "option": option, "arguments": arguments, "cwd": cwd, "env": env, "files": files}


def ranks(words: list[str], logs: Sequence[Path], cwd: Path, errors: Path | None = None) -> list[Fork]:
    """Start a command once for each file of output, as the ranks of ``init_process_group("gloo")``."""
    group = {**os.environ, "WORLD_SIZE": str(len(logs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [start(words, log, cwd, {**group, "RANK": str(rank)}, errors=errors) for rank, log in enumerate(logs)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    gc.freeze()  # a fork's collections would copy all of this
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

    if request.get("session"):
        os.setsid()
    network = request.get("network", "/proc/self/ns/net")  # a training is in its server's already
    if not os.path.samefile(network, "/proc/self/ns/net"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(os.open(network, os.O_RDONLY | os.O_CLOEXEC), 0):
            raise OSError(ctypes.get_errno(), "cannot enter the test's network")
    for number, file in enumerate(request["files"]):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY, 0o644), number)
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


def _fork_forkserver() -> None:
    """Let :mod:`multiprocessing`'s forkserver be a fork of this process as it is now, so that it imports nothing."""

    def start(_python: str, words: list[str], files: list[int]) -> int:
        if pid := os.fork():
            return pid
        try:
            for number in map(int, os.listdir("/proc/self/fd")):
                with contextlib.suppress(OSError):  # that of the listing
                    if number > 2 and number not in files:
                        os.close(number)
            multiprocessing.forkserver._forkserver.__init__()  # its lock was held by the fork's parent
            exec(words[-1], {})
        finally:
            os._exit(0)

    start_new, multiprocessing.util.spawnv_passfds = multiprocessing.util.spawnv_passfds, start
    multiprocessing.forkserver.ensure_running()
    multiprocessing.util.spawnv_passfds = start_new


def _fork_trainings() -> dict | None:
    """Let the trainings that this process, a server, starts be forks too; in such a fork return what it has to run."""
    here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)
    if not os.fork():
        here.close()
        return _serve_trainings(there)
    there.close()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the forks become its own children
    start_new, lock = subprocess.Popen._execute_child, threading.Lock()
    names = inspect.signature(start_new)

    def start(process: subprocess.Popen, words: list[str], *others: object) -> None:
        if list(words[1:3]) != ["-m", "monailabel.interfaces.utils.app"]:
            start_new(process, words, *others)
            return
        given = names.bind(process, words, *others).arguments
        request = _command(words, os.getcwd(), given["env"], [])
        with lock:
            # its input is this process's own, its errors go with its output
            socket.send_fds(here, [json.dumps(request).encode()], [0, given["c2pwrite"], given["errwrite"]])
            process.pid = int(here.recv(20))
        process._child_created = True
        os.close(given["c2pwrite"])

    subprocess.Popen._execute_child = start
    return None


def _serve_trainings(there: socket.socket) -> dict:
    """Fork for each request until the server ends; in a fork return what it has to run."""
    while True:
        content, files, *_ = socket.recv_fds(there, 2**18, 3)
        if not content:
            os._exit(0)
        if not os.fork():
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:  # then it is the server's
                time.sleep(0.001)
            ctypes.CDLL(None).prctl(15, b"training", 0, 0, 0)  # PR_SET_NAME
            there.send(str(os.getpid()).encode())
            there.close()
            return json.loads(content) | {"files": [f"/proc/self/fd/{file}" for file in files]}
        os.wait()
        for file in files:
            os.close(file)


if __name__ == "__main__":
    _PYTHONPATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if (_request := _serve()) is not None:
        _become(_request)
        if _request["arguments"][0] != "monailabel.main":
            _fork_forkserver()
        elif _training := _fork_trainings():
            _become(_request := _training)
        if _request["option"] == "-m":
            runpy.run_module(_request["arguments"][0], run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            exec(_request["arguments"][0], {"__name__": "__main__"})
