"""Orthanc in a network of its own, with one socket on loopback as the only way in.

``loopback.py SOCKET PARENT LOCK ORTHANC CONFIGURATION``, by ``unshare`` (``orthanc.py``). Orthanc before 1.12.10
listens on all addresses of its network, whatever it is told. This process and Orthanc are in a network namespace that
has nothing but loopback; the socket was opened outside it. Both end when the process that started them does.

It imports the standard library only, to take little memory.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import time

_PORT = 8042  # of Orthanc, in a network where nothing else is
_SET_DEATH_SIGNAL = 1  # prctl: sent to a process when its parent ends
_SET_FLAGS, _UP = 0x8914, 0x1  # ioctl and flag of network interfaces
_WAIT_SECONDS = 20.0  # for an Orthanc of a former start, which may still be closing its files
_STOP_SECONDS = 20.0


def end_with_parent() -> None:
    """Get SIGTERM when the parent process ends, also when it is killed."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)


def raise_loopback() -> None:
    """Switch loopback on, which is off in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


def lock(path: str) -> int:
    """One Orthanc at a time uses the folder; the descriptor holds the lock as long as it or a copy of it is open."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > end:
                sys.exit(f"another server uses {os.path.dirname(path)}: stop it, or give another folder with --output")
            time.sleep(0.2)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(2**16):
            target.write(data)
            await target.drain()
        target.write_eof()
    except OSError:  # one side has gone; the other is told by the end of its own copy
        target.close()


async def _forward(client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
    try:
        store_in, store_out = await asyncio.open_connection("127.0.0.1", _PORT)
    except OSError:  # Orthanc is not there yet
        client_out.close()
        return
    await asyncio.gather(_copy(client_in, store_out), _copy(store_in, client_out))
    store_out.close()
    client_out.close()


async def _run(listening: socket.socket, words: list[str], lock_file: int) -> int:
    asked_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_end.set)
    orthanc = await asyncio.create_subprocess_exec(*words, preexec_fn=end_with_parent, pass_fds=[lock_file])
    server = await asyncio.start_server(_forward, sock=listening)
    ends = [asyncio.ensure_future(orthanc.wait()), asyncio.ensure_future(asked_to_end.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    if orthanc.returncode is None:
        orthanc.terminate()
        try:
            await asyncio.wait_for(orthanc.wait(), _STOP_SECONDS)
        except asyncio.TimeoutError:
            orthanc.kill()
            await orthanc.wait()
    return orthanc.returncode


def main() -> None:
    """Forward connections to Orthanc until it, or the process that started this one, ends."""
    descriptor, parent, lock_path, *words = sys.argv[1:]
    end_with_parent()
    if os.getppid() != int(parent):  # it ended before
        return
    raise_loopback()
    listening = socket.socket(fileno=int(descriptor))
    listening.setblocking(False)
    sys.exit(asyncio.run(_run(listening, words, lock(lock_path))))


if __name__ == "__main__":
    main()
