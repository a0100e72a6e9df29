"""Images that clients upload for a while, for inference without the studies folder."""

from __future__ import annotations

import json
import logging
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from fastapi import HTTPException
from monailabel.utils.sessions import SessionInfo, Sessions

from medsaga.files import replacing
from medsaga.reading import max_image_bytes

__all__ = ["SafeSessions"]

logger = logging.getLogger(__name__)


def max_files() -> int:
    """Most files of an archive: ``MEDSAGA_MAX_FILES``, 10000 by default."""
    return int(os.environ.get("MEDSAGA_MAX_FILES", "10000"))


class SafeSessions(Sessions):
    """MONAI Label's sessions, whose ids are UUIDs and whose files have plain names, so that no path leads out of them.

    A damaged session answers 404 and is removed when it would have expired; it does not stop the others' removal.
    """

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo:
        """A session by its id.

        Raises:
            HTTPException: 404 for an id that is no UUID, of no session, or of one that has expired or is damaged.
        """
        session = self._find(session_id, update_ts, fetch_cache)
        if session is None:
            raise HTTPException(404, f"There is no session {session_id}, or it has expired: upload the image again.")
        return session

    def _find(self, session_id: str, update_ts: bool, fetch_cache: bool) -> SessionInfo | None:
        _checked(session_id)
        try:
            return super().get_session(session_id, update_ts, fetch_cache)
        except (ValueError, TypeError, AttributeError, OSError) as err:
            logger.warning(f"Session {session_id} is damaged: {err}")
            self.pop(session_id, None)
            return None

    def remove_session(self, session_id: str) -> None:
        super().remove_session(_checked(session_id))

    def remove_expired(self) -> int:
        """Remove expired sessions, and damaged ones that no upload can be writing any more.

        Returns:
            how many.
        """
        count, now = 0, time.time()
        for folder in Path(self.store_path).glob("*/"):
            if not _is_uuid(folder.name):  # not this class's
                continue
            try:
                session = self._find(folder.name, update_ts=False, fetch_cache=False)
                if session is not None:
                    expired = session.expiry > 0 and session.last_access_ts + session.expiry < now
                else:
                    expired = folder.stat().st_mtime + self.expiry < now
            except OSError:  # removed by another thread
                continue
            if expired:
                self.remove_session(folder.name)
                count += 1
        return count

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """Take an uploaded file, archive or folder.

        Args:
            data_file: moved into the session.
            expiry: seconds without access after which it is removed; at most the server's limit, which 0 stands for.
            uncompress: the file is a zip or tar archive of one image's files.
            session_id: a UUID, a new one unless given.

        Returns:
            the id and what is known of the session.

        Raises:
            HTTPException: 404 for an id that is no UUID, 413 for more than ``MEDSAGA_MAX_IMAGE_GB``, 422 for no file or
                an archive that cannot be unpacked.
        """
        session_id = _checked(session_id) if session_id else str(uuid.uuid4())
        expiry = min(max(expiry, 0), self.expiry)
        source = Path(data_file)
        if not data_file or not source.exists():
            raise HTTPException(422, "No file was uploaded for the session.")
        if source.is_file() and source.stat().st_size > max_image_bytes():
            raise HTTPException(
                413, f"The session's file is larger than {max_image_bytes() / 1e9:g} GB (MEDSAGA_MAX_IMAGE_GB)."
            )
        os.makedirs(self.store_path, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".upload-", dir=self.store_path) as work:
            if source.is_file() and uncompress:
                plain = Path(work) / "images"
                _unpack(source, plain)
            else:
                # not "meta.info", which is the session's own
                plain = Path(work) / ("image_" + re.sub(r"[^\w.-]", "_", source.name)[-100:])
                shutil.move(source, plain)
            return super().add_session(str(plain), expiry, False, session_id)

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        with replacing(Path(self.store_path) / session_id / "meta.info", uuid.uuid4().hex) as file:
            file.write_text(json.dumps(vars(session_info)))  # in one line, as it is read


def _is_uuid(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(text)) is not None


def _checked(session_id: str) -> str:
    if not _is_uuid(session_id):
        raise HTTPException(
            404, f"There is no session {str(session_id)[:100]!r}: an id must be a UUID, as PUT /session gives it."
        )
    return session_id


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive; members that would lie outside are refused or left out."""
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _check_members(archive, (member.file_size for member in file.infolist()))
            shutil.unpack_archive(archive, folder, "zip")
        else:
            with tarfile.open(archive) as file:
                # one after the other: what follows a member that is too large is not even read
                _check_members(archive, (member.size for member in file))
                file.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as err:
        raise HTTPException(422, f"{archive.name} cannot be unpacked as zip or tar: {err}.") from err
    except (NotImplementedError, RuntimeError) as err:  # another compression, or a password
        raise HTTPException(422, f"{archive.name} cannot be unpacked: {err}.") from err


def _check_members(archive: Path, sizes: Iterable[int]) -> None:
    total = 0
    for number, size in enumerate(sizes, 1):
        total += size
        if total > max_image_bytes():
            raise HTTPException(
                413, f"{archive.name} holds more than {max_image_bytes() / 1e9:g} GB (MEDSAGA_MAX_IMAGE_GB)."
            )
        if number > max_files():
            raise HTTPException(413, f"{archive.name} holds more than {max_files()} files (MEDSAGA_MAX_FILES).")
