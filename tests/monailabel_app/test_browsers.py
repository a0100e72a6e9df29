"""Which web pages and host names are answered."""

import pytest
from fastapi import HTTPException
from lib.browsers import check_host, check_origin
from lib.start import NO_WORKERS, Start, started, warn_if_open

HOST = "127.0.0.1:8000"


def status(function, *args):
    try:
        function(*args)
    except HTTPException as err:
        return err.status_code
    return 200


@pytest.mark.parametrize(
    "host, expected",
    [("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200), ("10.0.0.5:8000", 200),
     ("label.hospital", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("10.0.0.6", 421),
     ("localhost@evil.example", 421), ("", 400), ("[", 400), ("0.0.0.0", 421)],
)  # fmt: skip
def test_hosts(host, expected, monkeypatch):
    monkeypatch.setenv("MEDSAGA_HOSTS", "Label.Hospital , other")
    assert status(check_host, {"host": host}, {"10.0.0.5", ""}) == expected


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "origin, expected",
    [(f"http://{HOST}", 200), (f"https://{HOST}", 200), ("https://viewer.hospital", 200),
     ("http://viewer.hospital", 403),
     ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:8001", 403), ("http://127.0.0.1", 403),
     ("file://", 403), (f"http://{HOST}.evil.example", 403), (f"ftp://{HOST}", 403)],
)  # fmt: skip
def test_origins(method, origin, expected, monkeypatch):
    monkeypatch.setenv("MEDSAGA_ORIGINS", "https://viewer.hospital/")
    assert status(check_origin, method, {"host": HOST, "origin": origin}) == expected


@pytest.mark.parametrize(
    "headers, expected",
    [({}, 200), ({"site": "same-origin"}, 200), ({"site": "none", "mode": "navigate"}, 200),
     ({"site": "cross-site", "mode": "no-cors", "dest": "image"}, 403),
     ({"site": "same-site", "mode": "no-cors", "dest": "script"}, 403),
     ({"site": "cross-site", "mode": "navigate", "dest": "document"}, 200),
     ({"site": "cross-site", "mode": "navigate", "dest": "iframe"}, 403)],
)  # fmt: skip
def test_requests_that_browsers_send_without_an_origin(headers, expected):
    headers = {"host": HOST, **{f"sec-fetch-{key}": value for key, value in headers.items()}}
    assert status(check_origin, "GET", headers) == expected


def test_how_the_server_was_started(monkeypatch):
    words = ["start_server", "--app", "x", "-i", "10.0.0.5", "--root_path", "/label/", "--workers", "2"]
    assert started(words) == Start("10.0.0.5", "/label", 2)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    assert started(["start_server", "--port", "1"]) == Start("0.0.0.0", "", 1)
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    assert started(["start_server"]).workers == 3
    assert started(words).workers == 2, "what the command says comes first, as in uvicorn"


@pytest.mark.parametrize(
    "host, said", [("0.0.0.0", 1), ("10.0.0.5", 1), ("127.0.0.1", 0), ("localhost", 0), ("::1", 0)]
)
def test_an_open_server_says_so_in_one_line(host, said, caplog):
    warn_if_open(Start(host, "", 1))
    assert len(caplog.records) == said
    assert all("NO AUTHENTICATION" in record.message and "\n" not in record.message for record in caplog.records)


def test_our_own_command_refuses_workers(monkeypatch, capsys):
    from monailabel_app import serve

    monkeypatch.setattr("sys.argv", ["serve", "--workers", "2"])
    with pytest.raises(SystemExit):
        serve.main()
    assert NO_WORKERS in capsys.readouterr().err
