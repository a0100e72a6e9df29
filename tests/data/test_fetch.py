from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from medsaga.data.__main__ import main
from medsaga.data.fetch import Source, decathlon_source, fetch, run, source_of
from medsaga.data.unpack import unpack
from tests.file_server import serving

FILES = {"dataset.json": b"{}", "imagesTr/a.nii.gz": os.urandom(300_000), "labelsTr/a.nii.gz": b"label"}


def tar(files, mode="w", top="Task/", changed=lambda member: member):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            archive.addfile(changed(member), io.BytesIO(data))
    return content.getvalue()


def zipped(files, top="Task/", attributes=0):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(top + name)
            member.external_attr = attributes
            archive.writestr(member, data)
    return content.getvalue()


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def put(server, name, content):
    """Serve a file; its address and checksum."""
    server.files[f"/{name}"] = content
    return f"{server.address}/{name}", "sha256:" + hashlib.sha256(content).hexdigest()


def source(*files):
    return Source("Task", "http://page", "free", files)


# --- whole data sets -------------------------------------------------------------------------------------------------


ARCHIVES = {
    "t.tar": tar(FILES),
    "t.tar.gz": tar(FILES, "w:gz"),
    "t.tgz": tar(FILES, "w:gz", top="./Task/"),
    "t.zip": zipped(FILES),
    "without_folder.tar.xz": tar(FILES, "w:xz", top=""),
    "without_folder.zip": zipped({**FILES, "__MACOSX/._a": b"x"}, top=""),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_become_the_folder(server, tmp_path, name):
    folder = fetch(source(put(server, name, ARCHIVES[name])), tmp_path / "data")
    assert folder == tmp_path / "data" / "Task"
    assert {name: data for name, data in files_in(folder).items() if "__MACOSX" not in name} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["Task"]
    assert fetch(source(put(server, name, b"")), tmp_path / "data") == folder  # nothing is done again
    assert len(server.requests) == 1


def test_several_files_go_into_one_folder(server, tmp_path):
    files = [
        put(server, "input.zip", zipped(FILES, top="Input/")),
        put(server, "truth.tar", tar(FILES, top="Truth/")),
        put(server, "list.csv", b"a,b"),
    ]
    folder = fetch(source(*files), tmp_path)
    assert files_in(folder) == {
        **{f"Input/{name}": data for name, data in FILES.items()},
        **{f"Truth/{name}": data for name, data in FILES.items()},
        "list.csv": b"a,b",
    }


def test_a_cut_connection_is_resumed_and_what_arrived_is_not_fetched_again(server, tmp_path):
    files = [put(server, "a.zip", zipped({"a": b"1"}, top="")), put(server, "t.tar", tar(FILES))]
    server.stop_after = 100_000
    with pytest.raises(RuntimeError, match=r"t\.tar.*Run again to resume"):
        fetch(source(*files), tmp_path)
    assert not (tmp_path / "Task").exists()
    server.stop_after = None
    folder = fetch(source(*files), tmp_path)
    assert files_in(folder)["Task/imagesTr/a.nii.gz"] == FILES["imagesTr/a.nii.gz"]
    paths = [path for path, _ in server.requests]
    assert paths == ["/a.zip", "/t.tar", "/t.tar"]
    assert server.requests[-1][1].startswith("bytes=") and server.requests[-1][1] != "bytes=0-"


def test_another_checksum_leaves_nothing(server, tmp_path):
    url, _ = put(server, "t.tar", tar(FILES))
    with pytest.raises(RuntimeError, match="came with sha256:.*It was deleted"):
        fetch(source((url, "sha256:" + "0" * 64)), tmp_path)
    assert files_in(tmp_path) == {} or list(files_in(tmp_path)) == [".fetching-Task.lock"]


TRUNCATED = {
    "t.tar": lambda data: data[: len(data) // 2],
    "between.tar": lambda data: tar({"dataset.json": b"{}"})[:1024],  # after the first file
    "t.tar.gz": lambda data: data[:-2000],
    "wrong.tar.gz": lambda data: data[:-8] + bytes(8),  # the checksum that gzip keeps
    "t.zip": lambda data: data[: len(data) // 2],
    "page.zip": lambda data: b"<html>Please log in</html>",
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_damaged_archive_is_an_error_and_is_fetched_anew(server, tmp_path, name):
    whole = zipped(FILES) if name.endswith("zip") else tar(FILES, "w:gz" if name.endswith("gz") else "w")
    url, _ = put(server, name, TRUNCATED[name](whole))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        fetch(source((url, None)), tmp_path)
    assert not (tmp_path / "Task").exists()
    put(server, name, whole)
    assert files_in(fetch(source((url, None)), tmp_path)) == FILES


# --- hostile archives ------------------------------------------------------------------------------------------------


def link(member):
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc", 0
    return member


def hard_link(member):
    member.type, member.linkname, member.size = tarfile.LNKTYPE, "../../outside", 0
    return member


def device(member):
    member.type, member.size = tarfile.CHRTYPE, 0
    return member


HOSTILE = {
    "up.tar": tar({"../../outside": b"x"}, top=""),
    "absolute.tar": tar({"/tmp/medsaga-outside": b"x"}, top=""),
    "inside_up.tar": tar({"a/../../../outside": b"x"}),
    "link.tar": tar({"a": b""}, changed=link),
    "hard_link.tar.gz": tar({"a": b""}, "w:gz", changed=hard_link),
    "device.tar": tar({"a": b""}, changed=device),
    "up.zip": zipped({"../outside": b"x"}),
    "windows.zip": zipped({"..\\outside": b"x"}, top=""),
    "drive.zip": zipped({"C:outside": b"x"}, top=""),
    "absolute.zip": zipped({"/tmp/medsaga-outside": b"x"}, top=""),
    "link.zip": zipped({"a": b"/etc"}, attributes=0o120777 << 16),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_gets_outside_of_the_folder(server, tmp_path, name):
    with pytest.raises(ValueError, match="the archive is not unpacked"):
        fetch(source(put(server, name, HOSTILE[name])), tmp_path / "a" / "b" / "data")
    assert not (tmp_path / "a" / "b" / "data" / "Task").exists()
    assert not Path("/tmp/medsaga-outside").exists()
    assert {path.name for path in tmp_path.rglob("*")} <= {"a", "b", "data", ".fetching-Task", ".fetching-Task.lock"}


def test_a_link_cannot_be_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    archive, folder = tmp_path / "t.tar", tmp_path / "folder"
    folder.mkdir()
    members = {"a": b"", "a/file": b"x"}
    archive.write_bytes(tar(members, changed=lambda m: link(m) if m.name == "Task/a" else m))
    with pytest.raises(ValueError, match="is a link"):
        unpack(archive, folder)
    assert files_in(tmp_path / "outside") == {}


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(mount, tmp_path):
    return mount(tmp_path / "disk", "1m")


@pytest.mark.parametrize("size", [600_000, 2_000_000], ids=["unpacking", "download"])
def test_a_full_disk_is_an_error_and_leaves_no_half_folder(server, small_disk, size):
    content = tar({"a": os.urandom(size)}, "w:gz")
    with pytest.raises(OSError, match=r"No space left on device: .*Task does not fit; .* GB are free"):
        fetch(source(put(server, "t.tar.gz", content)), small_disk)
    assert not (small_disk / "Task").exists()
    assert [path for path in small_disk.rglob("*") if path.name.startswith("unpacking-")] == []


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Writes a bundle's dataset.json."""
    monkeypatch.setenv("MEDSAGA_DATA", str(tmp_path / "data"))

    def write(**fields):
        folder = tmp_path / "bundles" / "mine"
        (folder / "docs").mkdir(parents=True, exist_ok=True)
        (folder / "docs" / "data.md").write_text("Put the files so.")
        (folder / "dataset.json").write_text(json.dumps({"source": "A source", "folder": "Task", **fields}))
        return folder

    return write


def test_the_licence_is_shown_and_has_to_be_accepted(server, bundle, tmp_path, capsys):
    url, checksum = put(server, "t.zip", zipped(FILES))
    said = {"url": url, "sha256": checksum.split(":")[1], "page": "http://page", "licence": "CC BY-SA 4.0"}
    folder = bundle(download=said)
    for ask in (None, lambda question: "", lambda question: "no"):
        with pytest.raises(ValueError, match="the licence of mine's data was not accepted"):
            run(folder, False, ask)
        assert "CC BY-SA 4.0" in capsys.readouterr().out
    assert server.requests == []
    run(folder, False, lambda question: "Y")
    assert files_in(tmp_path / "data" / "Task") == FILES
    assert "train.json" in capsys.readouterr().out.splitlines()[-1]
    run(folder, False, None)  # a second time nobody is asked
    assert "is there already" in capsys.readouterr().out
    assert len(server.requests) == 1


def test_without_a_terminal_the_command_refuses_and_with_the_option_it_fetches(server, bundle, tmp_path, capsys):
    url, _ = put(server, "t.zip", zipped(FILES))
    folder = bundle(download={"files": [{"url": url}], "page": "http://page", "licence": "free"})
    with pytest.raises(SystemExit) as caught:
        main(["fetch", str(folder)])
    assert "not accepted" in str(caught.value.code)
    main(["fetch", str(folder), "--accept-licence"])
    assert "no checksum is published" in capsys.readouterr().out
    assert files_in(tmp_path / "data" / "Task") == FILES


@pytest.mark.parametrize("download", [None, {"page": "http://page/form", "licence": "terms"}])
def test_data_behind_a_form_are_described(bundle, tmp_path, capsys, download):
    main(["fetch", str(bundle(download=download))])
    said = capsys.readouterr().out
    assert all(text in said for text in ("A source", str(tmp_path / "data" / "Task"), "Put the files so."))
    assert ("http://page/form" in said) == (download is not None)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b.zip", "http://a/", "http://a/..", "http://a/.b.zip"])
def test_addresses_that_are_not_of_the_web_are_refused(url):
    with pytest.raises(ValueError, match="it must be http"):
        source_of({"folder": "Task", "download": {"url": url, "page": "", "licence": ""}})


def test_tasks_of_the_decathlon_come_from_where_monai_has_them():
    found = source_of({"folder": "Task09_Spleen", "download": None})
    assert found == decathlon_source("Task09_Spleen")
    ((url, checksum),) = found.files
    assert url.endswith("/Task09_Spleen.tar") and checksum == "md5:410d4a301da4e5b2f6f86ec3ddba524e"


def test_every_bundle_says_where_its_data_are_had():
    folders = sorted((Path(__file__).parents[2] / "bundles").glob("*/dataset.json"))
    for path in folders:
        if path.parent.name != "base":
            source_of(json.loads(path.read_text()))
    assert len(folders) > 5
