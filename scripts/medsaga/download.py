"""Files from the network: an interrupted download goes on, and what arrives is verified."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import requests
from tqdm import tqdm

__all__ = ["checksum_of", "download"]


def download(url: str, path: Path, checksum: str | None) -> None:
    """Download a file, going on where an earlier attempt ended.

    Args:
        url: of the file.
        path: where it is put when it is complete and right. Until then it lies beside that as ``.part``.
        checksum: that it must have, as "algorithm:hexadecimal digits"; None where none is published.

    Raises:
        RuntimeError: it cannot be downloaded, or has another checksum. The message says what to do by hand.
        OSError: the disk is full; what has arrived stays, to go on with.
    """
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part)
    except requests.RequestException as error:
        raise RuntimeError(
            f"cannot download {url} ({error}). Run again to resume, or fetch it by hand on a machine with internet "
            f"access and save it as {path.name} in {path.parent}"
        ) from error
    if checksum is not None and (actual := checksum_of(part, checksum)) != checksum:
        part.unlink()
        raise RuntimeError(
            f"{url} came with {actual}, not {checksum}: the download is damaged or the file was replaced. It was "
            "deleted; run again to fetch it anew"
        )
    os.replace(part, path)


def _fetch(url: str, part: Path) -> None:
    done = part.stat().st_size if part.is_file() else 0
    # Without "identity" a server may compress, and the offsets would count other bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
        if done and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to fetch; the checksum tells whether what is there is right
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            done = 0  # the server ignores ranges and sends the whole file
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with (
            part.open("ab" if done else "wb") as file,
            tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def checksum_of(path: Path, like: str) -> str:
    """Checksum of a file, as "algorithm:hexadecimal digits".

    Args:
        path: of the file.
        like: the algorithm, or another checksum by it.
    """
    algorithm = like.split(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)  # hospitals' FIPS machines refuse md5 otherwise
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"{algorithm}:{digest.hexdigest()}"
