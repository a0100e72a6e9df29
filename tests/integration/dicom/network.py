"""A network namespace with nothing but loopback: what runs in it is reached by nobody else and reaches nothing."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000


@contextmanager
def loopback_only() -> Iterator[None]:
    """This thread, and the processes and threads that it starts, live in a network namespace of their own.

    Raises:
        PermissionError: without the right to make one (root has it, and so has anyone inside ``unshare -rn``).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise PermissionError(os.strerror(ctypes.get_errno()))
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(before, _CLONE_NEWNET) == 0, "the first network namespace is lost"
    finally:
        os.close(before)
