"""A static web server for a repository folder: for trials, the demonstration and tests. Any web server does in
production; this one is small, knows byte ranges, and stays on loopback unless told otherwise.

    with Origin(Path("repo")) as origin:
        print(origin.url)                # http://127.0.0.1:43210

Only regular files inside the folder are served: no listing, no `..`, no symbolic link out of it. GET and HEAD, single
ranges (RFC 9110, 14), ETag, keep-alive. It serves from threads of this process and never blocks the caller.
"""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from kensho.base.errors import ConfigError, PortInUse

_RANGE = re.compile(r"bytes=(?=-?\d)(\d{0,18})-(\d{0,18})\Z")
_BLOCK_BYTES = 1 << 20


class Origin:
    """Starts at once; `close` (or leaving the `with`) stops it and ends open connections. Port 0 = any free one."""

    def __init__(self, folder: Path, port: int = 0, *, host: str = "127.0.0.1") -> None:
        if not folder.is_dir():
            raise ConfigError(f"no folder {folder}", advice="name the repository that `kensho publish` wrote")
        try:
            self._server = _Server((host, port), folder.resolve())
        except OverflowError as error:
            raise ConfigError(f"no such port: {port}", advice="use 1 to 65535, or 0 for any free one") from error
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "it is in use" if taken else os.strerror(error.errno or 0).lower()
            raise (PortInUse if taken else ConfigError)(
                f"cannot serve on {host} port {port}: {reason}", advice="choose another port, or 0 for any free one"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="origin", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{self._server.server_address[0]!s}:{self.port}"

    @property
    def bytes_sent(self) -> int:
        """Bytes of response bodies so far."""
        return self._server.bytes_sent

    @property
    def requests(self) -> int:
        return self._server.requests

    def wait(self) -> None:
        """Blocks until `close` is called from another thread, or KeyboardInterrupt."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Idempotent. Clients with an open connection see it end."""
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], folder: Path) -> None:
        super().__init__(address, _Handler)
        self.folder = folder
        self.bytes_sent = 0
        self.requests = 0
        self.lock = threading.Lock()
        self._connections: set[_Handler] = set()

    @contextmanager
    def connection(self, handler: "_Handler") -> Iterator[None]:
        with self.lock:
            self._connections.add(handler)
        try:
            yield
        finally:
            with self.lock:
                self._connections.discard(handler)

    def end_connections(self) -> None:
        with self.lock:
            handlers = list(self._connections)
        for handler in handlers:
            self.shutdown_request(handler.request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "kensho-origin"
    sys_version = ""
    timeout = 60  # an idle keep-alive connection
    disable_nagle_algorithm = True
    wbufsize = 64 << 10
    server: _Server

    def handle(self) -> None:
        with self.server.connection(self):
            super().handle()

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: who needs an access log uses a real web server."""

    def _answer(self, *, is_head: bool) -> None:
        with self.server.lock:
            self.server.requests += 1
        fd = self._open()
        if fd is None:
            self._head(HTTPStatus.NOT_FOUND, {}, 0)
            return
        try:
            found = os.fstat(fd)
            headers = {"ETag": f'"{found.st_mtime_ns:x}-{found.st_size:x}"', "Accept-Ranges": "bytes"}
            span = _span(self.headers.get("Range"), found.st_size)
            if span is None:
                headers["Content-Range"] = f"bytes */{found.st_size}"
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers, 0)
                return
            start, end = span
            status = HTTPStatus.OK
            if self.headers.get("Range") and _RANGE.match(self.headers["Range"]):
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.st_size}"
                status = HTTPStatus.PARTIAL_CONTENT
            self._head(status, headers, end - start)
            if not is_head:
                self._send(fd, start, end)
        finally:
            os.close(fd)

    def _head(self, status: HTTPStatus, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status < 400:
            kind = "application/json" if urlsplit(self.path).path.endswith(".json") else "application/octet-stream"
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, fd: int, start: int, end: int) -> None:
        while start < end:
            block = os.pread(fd, min(_BLOCK_BYTES, end - start), start)
            if not block:
                self.close_connection = True  # the file shrank: the client must see that the body is short
                return
            self.wfile.write(block)
            start += len(block)
            with self.server.lock:
                self.server.bytes_sent += len(block)

    def _open(self) -> int | None:
        """The file asked for, or None: absent, not regular, or outside the folder."""
        try:
            target = (self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")).resolve(strict=True)
            if not target.is_relative_to(self.server.folder):
                return None
            fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError, RuntimeError):
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd


def _span(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Start and end of what to send; None if the range cannot be satisfied (416). Anything but one plain range is
    ignored, as RFC 9110 allows, and the whole file sent."""
    found = _RANGE.match(header) if header else None
    if not found:
        return 0, size_bytes
    if not found[1]:  # the last N bytes
        count = min(int(found[2]), size_bytes)
        return (size_bytes - count, size_bytes) if count else None
    start = int(found[1])
    end = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
    return (start, end) if start < end else None
