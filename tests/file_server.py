"""A server of files on the loopback, whose manners a test sets."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FileServer", "serving"]


class FileServer:
    """A file server with byte ranges.

    Attributes:
        files: content by path, such as ``/weights.pth``.
        ranges: whether it minds ranges, or sends whole files.
        stop_after: bytes after which it closes the connection; None sends all.
        requests: path and Range header of each request.
        address: without a slash at the end.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.stop_after = None
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append((self.path, asked))
                if self.path not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[self.path]
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and outer.ranges else 0
                if start and start >= len(content):
                    self.send_response(416)
                    self.end_headers()
                    return
                body = content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.stop_after])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server that runs, and is stopped at the end."""
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()
