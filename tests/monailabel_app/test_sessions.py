"""Uploaded images: no path leads out of the sessions' folder, and a damaged one harms no other."""

import io
import json
import os
import tarfile
import time
import zipfile

import pytest
from fastapi import HTTPException

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.sessions import SafeSessions

UNKNOWN = "123e4567-e89b-12d3-a456-426614174000"


@pytest.fixture
def sessions(tmp_path):
    return SafeSessions(str(tmp_path / "sessions"), expiry=3600)


@pytest.fixture
def upload(tmp_path):
    def write(name="image.nii.gz", content=b"content"):
        (tmp_path / "received").mkdir(exist_ok=True)
        path = tmp_path / "received" / name
        path.write_bytes(content)
        return str(path)

    return write


def refused(status, function, *args, **kwargs):
    with pytest.raises(HTTPException) as caught:
        function(*args, **kwargs)
    assert caught.value.status_code == status
    return caught.value.detail


def expire(sessions, session_id):
    meta = os.path.join(sessions.store_path, session_id, "meta.info")
    with open(meta) as file:
        info = json.load(file)
    info["last_access_ts"] -= 2 * 3600
    with open(meta, "w") as file:
        json.dump(info, file)


def test_a_session_is_found_again_also_after_a_restart(sessions, upload):
    session_id, info = sessions.add_session(upload())
    for one in (sessions, SafeSessions(sessions.store_path)):
        with open(one.get_session(session_id).image, "rb") as file:
            assert file.read() == b"content"
    assert info.image.endswith(".nii.gz")
    assert os.listdir(sessions.store_path) == [session_id], "nothing temporary is left"
    sessions.remove_session(session_id)
    assert session_id in refused(404, sessions.get_session, session_id)
    assert os.listdir(sessions.store_path) == []


@pytest.mark.parametrize("name", ["..", "../outside", "/etc", "", ".", "x", UNKNOWN.upper(), UNKNOWN + "/..", UNKNOWN])
def test_ids_that_are_none_reach_no_file(sessions, upload, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "meta.info").write_text(json.dumps({"name": "x", "image": upload(), "expiry": 1}))
    refused(404, sessions.get_session, name)
    if name != UNKNOWN:
        refused(404, sessions.remove_session, name)
    if name and name != UNKNOWN:
        refused(404, sessions.add_session, upload(), session_id=name)
    assert (outside / "meta.info").exists()


@pytest.mark.parametrize("name", ["meta.info", "..nii", "a b;$(x).nii.gz", ".hidden", "ü" * 80 + ".png"])
def test_uploaded_names_are_made_plain(sessions, upload, name):
    session_id, info = sessions.add_session(upload(name))
    folder = os.path.join(sessions.store_path, session_id)
    assert os.path.dirname(info.image) == folder
    assert sorted(os.listdir(folder)) == sorted([os.path.basename(info.image), "meta.info"])
    with open(SafeSessions(sessions.store_path).get_session(session_id).image, "rb") as file:
        assert file.read() == b"content"


def test_several_files_are_a_folder(sessions, upload, tmp_path):
    for name in ("1.dcm", "2.dcm"):
        upload(name)
    _, info = sessions.add_session(str(tmp_path / "received"))
    assert sorted(os.listdir(info.image)) == ["1.dcm", "2.dcm"]


def archive(kind, members):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name in members:
                file.writestr(name, b"member")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name in members:
                info = tarfile.TarInfo(name)
                info.size = 6
                file.addfile(info, io.BytesIO(b"member"))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_unpack_inside_the_session_only(sessions, upload, tmp_path, kind):
    _, info = sessions.add_session(upload(f"x.{kind}", archive(kind, ["1.dcm", "sub/2.dcm"])), uncompress=True)
    assert sorted(os.listdir(info.image)) == ["1.dcm", "sub"]
    before = set(tmp_path.rglob("*evil*"))
    try:
        sessions.add_session(upload(f"y.{kind}", archive(kind, ["../../../evil", "/tmp/evil", "ok"])), uncompress=True)
    except HTTPException as err:
        assert err.status_code == 422  # noqa: PT017
    inside = [p for p in tmp_path.rglob("*evil*") if p not in before]
    assert all(os.path.realpath(p).startswith(os.path.realpath(sessions.store_path)) for p in inside)
    assert not os.path.exists("/tmp/evil")
    assert "x.bin" in refused(422, sessions.add_session, upload("x.bin", b"junk" * 99), uncompress=True)


def test_size_is_limited_packed_and_unpacked(sessions, upload, monkeypatch):
    monkeypatch.setenv("MEDSAGA_MAX_IMAGE_GB", "0.000001")
    assert "MEDSAGA_MAX_IMAGE_GB" in refused(413, sessions.add_session, upload(content=b"x" * 2000))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", b"\0" * 10**5)
    assert len(buffer.getvalue()) < 1000
    refused(413, sessions.add_session, upload("bomb.zip", buffer.getvalue()), uncompress=True)
    assert os.listdir(sessions.store_path) == []


def test_no_file_is_refused(sessions):
    assert refused(422, sessions.add_session, "") == "No file was uploaded for the session."
    assert not os.path.exists(sessions.store_path) or os.listdir(sessions.store_path) == []


def test_expired_and_damaged_sessions_are_removed_and_others_kept(sessions, upload):
    expired, _ = sessions.add_session(upload())
    kept, _ = sessions.add_session(upload())
    expire(sessions, expired)
    damaged = []
    for content in (None, "", "{", "[]", '{"name": "x"}'):
        folder = os.path.join(sessions.store_path, UNKNOWN[:-1] + str(len(damaged)))
        os.mkdir(folder)
        if content is not None:
            with open(os.path.join(folder, "meta.info"), "w") as file:
                file.write(content)
        damaged.append(folder)
    os.mkdir(os.path.join(sessions.store_path, "not a session"))
    assert sessions.remove_expired() == 1, "damaged ones may still be uploading"
    assert all(os.path.isdir(folder) for folder in damaged[:3])
    for folder in damaged:
        refused(404, sessions.get_session, os.path.basename(folder))
        if os.path.isdir(folder):
            os.utime(folder, (time.time() - 7200,) * 2)
    sessions.remove_expired()
    assert sorted(os.listdir(sessions.store_path)) == sorted([kept, "not a session"])
    assert sessions.get_session(kept).name == kept


def test_without_a_folder_there_is_nothing_to_remove(sessions):
    assert sessions.remove_expired() == 0
