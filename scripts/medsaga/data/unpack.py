"""Unpack archives; nothing is written outside of the folder, and no links are made."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

__all__ = ["is_archive", "unpack"]

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    """Whether a file of this name is unpacked."""
    return path.name.lower().endswith((*_TAR, ".zip"))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive.

    Args:
        archive: tar, compressed or not, or zip.
        folder: an existing folder, which gets the archive's content.

    Raises:
        ValueError: it is damaged, or holds a link, a device, or a path that leads outside of the folder.
        OSError: the disk is full.
    """
    try:
        if archive.name.lower().endswith(".zip"):
            _unzip(archive, folder)
        else:
            _untar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as err:
        raise ValueError(f"{archive} is damaged: {err}") from err


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _check_path(archive, member.name)
            if member.isdir():
                continue  # folders are made with the files in them, with the rights of this process
            if not member.isreg():
                raise ValueError(
                    f"{archive} holds {member.name!r}, which is a link or a device: the archive is not unpacked"
                )
            with tar.extractfile(member) as source:
                _write(source, folder / member.name, member.size, archive)
        # tarfile accepts an archive that was cut off between two files as a whole one
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{archive} is damaged: its end is missing")
        while tar.fileobj.read(1 << 20):  # to the checksum of what is compressed
            pass


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            _check_path(archive, member.filename)
            if member.is_dir():
                continue
            if member.external_attr >> 28 == 0o12:  # Unix' type of a link
                raise ValueError(f"{archive} holds {member.filename!r}, which is a link: the archive is not unpacked")
            with content.open(member) as source:
                _write(source, folder / member.filename, member.file_size, archive)


def _check_path(archive: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
        raise ValueError(f"{archive} holds {name!r}, which may lead outside of its folder: the archive is not unpacked")


def _write(source, path: Path, size: int, archive: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    if path.stat().st_size != size:
        raise ValueError(f"{archive} is damaged: {path.name} ends after {path.stat().st_size} of {size} bytes")
