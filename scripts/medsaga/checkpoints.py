"""Read only tensors and plain values from files of weights, and say what a file is that holds no weights."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

__all__ = ["read_checkpoint"]

# Besides tensors, trainings keep arguments, scores and arrays in checkpoints: plain values, without code. numpy's
# functions have had two module paths.
_NUMPY = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
torch.serialization.add_safe_globals(
    [
        argparse.Namespace,
        np.dtype,
        np.ndarray,
        *(type(np.dtype(code)) for code in "?bBhHiIlLefd"),
        *((f, f"numpy.{core}.multiarray.{name}") for name, f in _NUMPY.items() for core in ("core", "_core")),
    ]
)

_HEAD = 512  # bytes that tell what a file is
_LISTED = 3


def read_checkpoint(path: Path, mapped: bool = False) -> Any:
    """The content of a file that ``torch.save`` or safetensors has written, on the CPU.

    No code of the file is run: what is neither tensor nor plain value is refused.

    Args:
        path: the file.
        mapped: leave the tensors on the disk, for callers that want something else from the file.

    Raises:
        ValueError: it is empty, cut off, no file of weights (a git-lfs pointer, a web page, an archive, TorchScript),
            or holds other objects. The message says what to do.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if (problem := _no_weights(head)) is not None:
        raise ValueError(f"{path} {problem}")
    try:
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except RuntimeError:
            if not mapped:
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # torch's format of before 1.6
    except Exception as error:  # torch's reader has a dozen kinds for damaged files: IndexError, zipfile's, pickle's
        # not "from error": PyTorch advises to run whatever the file holds
        raise ValueError(f"{path} {_problem(path, head, error)}") from None


def _no_weights(head: bytes) -> str | None:
    """What a file is by its first bytes, and what to do, where these are not those of weights."""
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not head:
        return "cannot be read: it is damaged, it has 0 bytes. Copy or download it again."
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d+)", head)
        return (
            "is a git-lfs pointer, not the weights"
            + (f" ({int(size[1]) / 1e6:.0f} MB)" if size else "")
            + ". Run git lfs install and git lfs pull in its repository, or download the file itself."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "cannot be read: it is damaged, because a web page was saved in its place (a login, a licence to accept or "
            "an error). Open it in a browser to see which of these it is, and download the file again."
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")) or head[257:262] == b"ustar":
        return "is an archive. Unpack it, and name the weights file in it."
    return None


def _problem(path: Path, head: bytes, error: Exception) -> str:
    """What is wrong with a file that begins as weights do, and what to do."""
    text = str(error)
    if objects := _objects(path, text):
        listed = ", ".join(objects[:_LISTED]) + (", ..." if len(objects) > _LISTED else "")
        return (
            f"cannot be read: it holds Python objects besides tensors ({listed}), and reading them would run code. "
            "In the program that made the file, save the weights alone: torch.save(model.state_dict(), FILE)."
        )
    if "TorchScript" in text:
        return "is a TorchScript program, not a weights file. Name the model.pt that it was made from."
    if head.startswith(b"PK") and "central directory" in text:
        return (
            f"cannot be read: it is damaged, its end is missing ({path.stat().st_size} bytes are there). Copy or "
            "download it again."
        )
    if head.startswith(b"PK") and ("data.pkl" in text or "hasRecord" in text):
        return "is a zip archive, but not a PyTorch weights file. Unpack it, and name the weights file in it."
    reason = "" if "weights_only" in text else f" ({text.strip().splitlines()[0]})" if text.strip() else ""
    return f"cannot be read: it is damaged, or it is not a checkpoint of tensors only{reason}."


def _objects(path: Path, text: str) -> list[str]:
    """Names of the classes and functions in a file that are neither of tensors nor of plain values."""
    named = re.findall(r"GLOBAL ([\w.]+)", text)
    try:
        return sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(path), *named})
    except Exception:  # of a damaged file, and of torch's format of before 1.6
        return named
