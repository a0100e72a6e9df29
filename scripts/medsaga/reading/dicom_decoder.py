"""Decode frames with pydicom; frames that need GDCM are decoded in a separate process.

GDCM's decoders crash on some damaged codestreams, and would end the process of a whole batch. This file is also the
program of the separate process, so it imports nothing from medsaga.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

__all__ = ["decode", "decode_apart"]

_LONGEST_HEAD = 2**16
_SECONDS = 120  # time limit for a frame; the largest that are read take a few seconds
_LOCK = threading.Lock()
_PROCESSES: dict[int, subprocess.Popen] = {}  # by the process that started it: a fork must not share its parent's
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def decode(elements: dict[str, Any], syntax: str, data: bytes) -> np.ndarray:
    """Decode one frame with pydicom, as a data set of its own, so that it takes the memory of one frame.

    Args:
        elements: of the image pixel module.
        syntax: UID of the transfer syntax.
        data: bytes of the frame, not encapsulated.

    Returns:
        (rows, columns) or (rows, columns, 3), as stored.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    image, compressed = Dataset(), UID(syntax).is_compressed and not UID(syntax).is_deflated
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.is_little_endian, image.is_implicit_VR = UID(syntax).is_little_endian, False
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    image.add_new("PixelData", "OB" if compressed else "OW", encapsulate([data]) if compressed else data)
    image["PixelData"].is_undefined_length = compressed
    return image.pixel_array


def decode_apart(elements: dict[str, Any], syntax: str, data: bytes) -> np.ndarray:
    """:func:`decode` in another process, which is started once and then waits for further frames.

    Raises:
        ValueError: with the decoder's message, or saying that it crashed or did not end.
    """
    import numpy as np  # imported here, because the other process first removes this folder from its path

    with _LOCK:
        process = _PROCESSES.get(os.getpid())
        if process is None or process.poll() is not None:
            process = _PROCESSES[os.getpid()] = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            atexit.register(_end, process)
            for pipe in (process.stdin, process.stdout):  # with the default size a frame passes in pieces of 64 KiB
                with contextlib.suppress(OSError, AttributeError):
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 2**20)
        try:
            _send(process.stdin, {"elements": elements, "syntax": syntax}, data)
            waiting = select.poll()  # select.select accepts no file numbers above 1023, which servers reach
            waiting.register(process.stdout, select.POLLIN)
            if not waiting.poll(1000 * _SECONDS):
                raise TimeoutError(f"the decoder did not end within {_SECONDS} s")
            answer, pixels = _receive(process.stdout)
            error = answer.get("error")
            decoded = None if error else np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"])
        except TimeoutError as e:
            error = str(e)
            _end(process)
        except (EOFError, OSError, KeyError, TypeError, ValueError, AttributeError, MemoryError):
            error = "the decoder crashed"  # anything that it has written is not an answer
            _end(process)
    if error:
        raise ValueError(error)
    return decoded


def _send(stream: BinaryIO, head: dict[str, Any], data: bytes) -> None:
    """A line of JSON and bytes: unlike pickle, what a decoder out of control sends is data and never code."""
    stream.write(json.dumps({**head, "size": len(data)}).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    line = stream.readline(_LONGEST_HEAD)
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    data = stream.read(max(head["size"], 0))
    if len(data) != head["size"]:
        raise EOFError
    return head, data


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def _serve() -> None:
    """Answer frames with arrays, or with the text of an error, until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries must not write among the answers
    while True:
        try:
            request, data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            pixels = decode(request["elements"], request["syntax"], data)
        except Exception as e:
            _send(answers, {"error": (str(e) or type(e).__name__)[:1000]}, b"")
        else:
            _send(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes())


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose files could be taken for other packages' modules
    _serve()
