"""``python -m medsaga.data fetch NAME``: the data set of a bundle from its public address, or where to ask for it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from monai.apps.datasets import DecathlonDataset

from medsaga.bundle.dataset import read_dataset
from medsaga.download import checksum_of, download
from medsaga.failures import nothing_can_be_written

from .unpack import is_archive, unpack

__all__ = ["Source", "decathlon_source", "fetch", "run", "source_of"]

_YES = ("y", "yes")


@dataclass(frozen=True)
class Source:
    """Where a data set can be obtained.

    Args:
        folder: its folder, below that of all data.
        page: web page about it.
        licence: its terms.
        files: address and checksum ("algorithm:hexadecimal digits", or None) of each file; none where it is obtained by
            a form.
    """

    folder: str
    page: str
    licence: str
    files: tuple[tuple[str, str | None], ...] = ()


def decathlon_source(task: str) -> Source:
    """A task of the Medical Segmentation Decathlon, from the address that MONAI uses."""
    return Source(
        task,
        "http://medicaldecathlon.com/",
        "CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
        ((DecathlonDataset.resource[task], f"md5:{DecathlonDataset.md5[task]}"),),
    )


def source_of(dataset: dict[str, Any]) -> Source | None:
    """Where the data set of a bundle's ``dataset.json`` can be obtained; None where the file does not say.

    Raises:
        ValueError: an invalid address, or one that is not on the web.
    """
    folder, said = dataset.get("folder"), dataset.get("download")
    if said is None:
        return decathlon_source(folder) if folder in DecathlonDataset.resource else None
    files = said.get("files", [said] if "url" in said else [])
    found = []
    for file in files:
        url = str(file["url"])
        if urlsplit(url).scheme not in ("http", "https") or not _file_name(url):
            raise ValueError(f"download of dataset.json has the url {url!r}: it must be http(s)://.../FILE")
        checksums = [f"{algorithm}:{file[algorithm]}" for algorithm in ("sha256", "md5") if algorithm in file]
        found.append((url, checksums[0] if checksums else None))
    return Source(str(folder), str(said["page"]), str(said["licence"]), tuple(found))


def _file_name(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2]
    return name if re.fullmatch(r"[\w()+,=-][\w .()+,=%-]*", name) else ""


def fetch(source: Source, data_dir: str | Path) -> Path:
    """Download and unpack a data set, as a whole or not at all.

    The received part of an interrupted download stays in ``.fetching-FOLDER`` beside the data set, and the next call
    continues with it. Of several processes that want the same data set at once, one fetches it and the others wait.

    Args:
        source: with files.
        data_dir: folder of all data, made if need be.

    Returns:
        folder of the data set. Nothing is done where it is there already.

    Raises:
        RuntimeError: a file cannot be downloaded, or is not the expected one.
        ValueError: an archive that is damaged, or that would write outside of its folder.
        OSError: the disk is full.
    """
    target = Path(data_dir).expanduser() / source.folder
    if target.exists():
        return target
    work = target.parent / f".fetching-{target.name}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{work}.lock") as lock:
            if not target.exists():
                _fetch(source, target, work)
                shutil.rmtree(work, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
    except OSError as err:
        if not nothing_can_be_written(err):
            raise
        free = shutil.disk_usage(work if work.is_dir() else target.anchor or ".").free
        raise OSError(
            err.errno,
            f"{os.strerror(err.errno)}: {target} does not fit; {free / 1e9:.1f} GB are free. Make room and run again: "
            f"what has arrived in {work} is used again",
        ) from err
    return target


def _fetch(source: Source, target: Path, work: Path) -> None:
    for left in work.glob("unpacking-*"):  # left by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # files that are not archives last, because they are moved
    arrived = sorted((_arrived(url, checksum, work) for url, checksum in source.files), key=lambda p: not is_archive(p))
    with tempfile.TemporaryDirectory(dir=work, prefix="unpacking-", ignore_cleanup_errors=True) as unpacking:
        root = Path(unpacking) / target.name
        root.mkdir()
        for path in arrived:
            if not is_archive(path):
                os.replace(path, root / path.name)
                continue
            try:
                unpack(path, root)
            except ValueError:
                path.unlink()  # the next call fetches it anew
                raise
        inside = [entry for entry in root.iterdir() if entry.name != "__MACOSX"]
        # an archive may hold the data set's folder, or what is in it
        alone = len(inside) == 1 and inside[0].is_dir() and inside[0].name == target.name
        os.rename(inside[0] if alone else root, target)


def _arrived(url: str, checksum: str | None, work: Path) -> Path:
    path = work / _file_name(url)
    if not (path.is_file() and (checksum is None or checksum_of(path, checksum) == checksum)):
        download(url, path, checksum)
    return path


def data_folder() -> Path:
    """Folder of all data sets, as the bundles' configs have it: ``$MEDSAGA_DATA``, else ``data``."""
    return Path(os.environ.get("MEDSAGA_DATA", "data")).expanduser()


def run(bundle: Path, accept: bool, ask: Callable[[str], str] | None) -> None:
    """Fetch a bundle's data set, or say how to obtain it.

    Args:
        bundle: its folder.
        accept: whether the licence is accepted already.
        ask: reads an answer; None where nobody can be asked.

    Raises:
        ValueError: the licence was not accepted.
    """
    dataset, name = read_dataset(bundle), bundle.resolve().name
    if dataset.get("folder") is None:
        print(f"There is nothing to download: {name} was made from the data in {dataset.get('dataset_dir')}.")
        return
    source, target = source_of(dataset), data_folder() / dataset["folder"]
    if target.exists():
        print(f"{target} is there already; delete it to fetch it anew.")
    else:
        print(f"Source:   {dataset['source']}")
        if source is not None:
            print(f"Page:     {source.page}\nLicence:  {source.licence}")
        if source is None or not source.files:
            print(f"Folder:   {target}\n\nThere is no public address: ask for the data at their source.\n")
            described = bundle / "docs" / "data.md"
            print(described.read_text(encoding="utf-8") if described.is_file() else "")
            return
        for url, checksum in source.files:
            print(f"File:     {url}{'' if checksum else ' (no checksum is published)'}")
        if not accept and (ask is None or ask("Do you accept this licence? [y/N] ").strip().lower() not in _YES):
            raise ValueError(f"the licence of {name}'s data was not accepted: answer y, or give --accept-licence")
        print(f"{fetch(source, data_folder())} is complete.")
    print(f"Next:     python -m monai.bundle run training --config_file {bundle / 'configs' / 'train.json'}")
