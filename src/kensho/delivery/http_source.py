"""A repository behind any web server. The only file of delivery that speaks HTTP; imported only when it is needed.

Nothing that a server, a proxy or a captive portal answers is believed without a check (list items 9 to 11 of the
delivery design): a range is 206 with the very Content-Range that was asked for, or the whole file streamed and cut;
bodies are never decompressed; redirects are few and keep the scheme; every read has a stall limit, every ten seconds a
floor of bytes, every request a deadline. An ETag is not compared: mirrors disagree about them, and the digest decides.
"""

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, NotFoundAtSource, TransportError

PIECE_BYTES = 512 << 10
"""Measured on loopback: 256 KiB cost 15 % more CPU, 1 MiB saves nothing more."""
MAX_REDIRECTS = 5
MAX_SKIP_BYTES = 32 << 20
"""What is read and thrown away to reach a range, when a server ignores Range. A guess: 16 s of 16 Mbit/s."""
MAX_ERROR_BYTES = 64 << 10
WINDOW_S = 10.0
MIN_BYTES_PER_S = 1024
"""In each window. A guess: a tenth of what one of four connections gets of a bad 2G link; 1 byte/s must not pass."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


class HttpSource:
    """Satisfies `Source`. Thread-safe; keeps up to 8 connections. `proxy` is http(s)://[user:password@]host:port.

    `stall_s` bounds connecting and each wait for bytes.
    """

    def __init__(self, url: str, *, clock: Clock, proxy: str | None = None, stall_s: Seconds = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{_without_password(url)!r} is not a web address", advice="write https://host/folder")
        self._base = f"{parts.scheme}://{_host(parts.netloc)}{parts.path.rstrip('/')}/"
        self._credentials = _credentials(parts.username, parts.password)
        self._clock, self._stall_s = clock, stall_s
        self._timeout = urllib3.Timeout(connect=stall_s, read=stall_s)
        self._pool = _pool(proxy)
        self._lock = threading.Lock()
        self._bytes = 0
        self._requests = 0

    @property
    def name(self) -> str:
        return self._base.rstrip("/")

    @property
    def bytes_fetched(self) -> int:
        return self._bytes

    @property
    def requests(self) -> int:
        return self._requests

    def read(self, path: str, *, max_bytes: int) -> bytes:
        with self._get(path, {}, max_bytes) as response:
            if response.status != 200:
                raise TransportError(f"{self.name} answered {response.status} for {path}", advice="is it a repository?")
            data = bytearray()
            for piece in self._pieces(response, path, max_bytes + 1):
                data += piece
            if len(data) > max_bytes:
                raise TransportError(
                    f"{path} of {self.name} has more than {max_bytes} bytes", advice="do not trust it", is_final=True
                )
            if (expected := _length(response)) is not None and expected != len(data):
                raise self._cut_off(path, expected - len(data))
            return bytes(data)

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._get(path, headers, length) as response:
            if response.status == 206:
                self._check_range(response, path, offset, length)
                skip = 0
            else:  # 200: Range was ignored; the wanted bytes are in there
                skip = offset
                if skip > MAX_SKIP_BYTES:
                    raise TransportError(
                        f"{self.name} ignores byte ranges ({path})",
                        advice="serve the repository with a server that knows Range (nginx, `kensho origin`)",
                        is_final=True,
                    )
            left = length
            for piece in self._pieces(response, path, skip + length):
                wanted = piece[skip:] if skip < len(piece) else b""
                skip -= len(piece) - len(wanted)
                left -= len(wanted)
                if wanted:
                    yield wanted
            if left:
                raise self._cut_off(path, left)

    def close(self) -> None:
        self._pool.clear()

    # --- one request ---

    def _address(self, path: str) -> str:
        return urljoin(self._base, quote(path))

    @contextmanager
    def _get(self, path: str, headers: Mapping[str, str], length: int) -> Iterator[urllib3.BaseHTTPResponse]:
        """The response of status 200 or 206. Anything else, and any failure inside, is a TransportError."""
        watch = _Watch(self._stall_s + WINDOW_S + length / MIN_BYTES_PER_S)
        response: urllib3.BaseHTTPResponse | None = None
        try:
            response = self._follow(self._address(path), headers)
            self._check_status(response, path)
            yield response
            if watch.is_over:  # to the parser a socket that was shut down is an answer that ended
                raise HTTPError("too slow")
        except HTTPError as error:
            reason = "too slow" if watch.is_over else _reason(error)
            raise TransportError(
                f"cannot reach {self.name} ({reason})", advice="check the network and the address"
            ) from error
        finally:
            watch.stop()
            if response is not None:
                _give_back(response)

    def _follow(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        scheme, host = urlsplit(url)[:2]
        for _ in range(MAX_REDIRECTS + 1):
            with self._lock:
                self._requests += 1
            own = self._credentials if urlsplit(url).netloc == host else {}  # never given to another host
            response = self._pool.urlopen(
                "GET",
                url,
                headers={"Accept-Encoding": "identity", "User-Agent": "kensho", **headers, **own},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=self._timeout,
            )
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            response.close()
            url = urljoin(url, location)
            if urlsplit(url).scheme != scheme:
                raise TransportError(
                    f"{self.name} redirects from {scheme} to {urlsplit(url).scheme[:20]!r}: refused",
                    advice="use the final address as the source",
                    is_final=True,
                )
        raise TransportError(f"{self.name} redirects without end", advice="check the address", is_final=True)

    def _check_status(self, response: urllib3.BaseHTTPResponse, path: str) -> None:
        status = response.status
        if status not in (200, 206):
            for _ in self._pieces(response, path, MAX_ERROR_BYTES):  # counted, and the connection can be used again
                pass
        if status in (403, 404, 410):  # a bucket whose listing is private answers 403 for what it does not have
            raise NotFoundAtSource(f"{self.name} has no {path} (status {status})", advice="check the repository")
        if status not in (200, 206):
            retry_after_s = _retry_after_s(response.headers.get("Retry-After"), self._clock.wall_s())
            is_final = 400 <= status < 500 and status not in (408, 416, 425, 429)
            raise TransportError(
                f"{self.name} answered {status} for {path}",
                advice="try again later" if not is_final else "check the address and the rights",
                status=status,
                is_final=is_final,
                **({} if retry_after_s is None else {"retry_after_s": retry_after_s}),
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise TransportError(f"{self.name} compresses {path} though asked not to", advice="switch that off there")
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise TransportError(
                f"{self.name} answered a web page instead of {path}",
                advice="a captive portal or proxy? sign in to the network, or check the address",
            )

    def _check_range(self, response: urllib3.BaseHTTPResponse, path: str, offset: int, length: int) -> None:
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if not found or (int(found[1]), int(found[2])) != (offset, offset + length - 1):
            raise TransportError(
                f"{self.name} sent another range of {path} than asked for", advice="a broken proxy or server"
            )

    def _pieces(self, response: urllib3.BaseHTTPResponse, path: str, limit: int) -> Iterator[bytes]:
        """The body in pieces as they come, at most `limit` bytes; refuses a trickle."""
        start_s, in_window = self._clock.monotonic_s(), 0
        while limit and (piece := response.read1(min(PIECE_BYTES, limit))):
            limit -= len(piece)
            in_window += len(piece)
            with self._lock:
                self._bytes += len(piece)
            now_s = self._clock.monotonic_s()
            if now_s - start_s >= WINDOW_S:
                if in_window < MIN_BYTES_PER_S * (now_s - start_s):
                    raise TransportError(
                        f"{self.name} is too slow ({in_window} bytes in {now_s - start_s:.0f} s)", advice="try later"
                    )
                start_s, in_window = now_s, 0
            yield piece

    def _cut_off(self, path: str, missing: int) -> TransportError:
        return TransportError(f"{self.name} cut {path} off {missing} bytes before its end", advice="try again")


class _Watch:
    """Shuts a request's socket down at its deadline. The socket's own time-out starts anew with every byte, so a server
    that dribbles out header lines would never meet it."""

    _of_thread = threading.local()

    def __init__(self, limit_s: Seconds) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(limit_s, self._end)
        self._timer.daemon = True
        self._timer.start()
        self._of_thread.watch = self

    @classmethod
    def see(cls, connected: socket.socket | None) -> None:
        """The calling thread's request is on this socket."""
        watch = getattr(cls._of_thread, "watch", None)
        if isinstance(watch, cls):
            watch._socket = connected

    def stop(self) -> None:
        self._timer.cancel()
        self._socket = None

    def _end(self) -> None:
        self.is_over = True
        if (connected := self._socket) is not None:
            # The plain one: SSLSocket.shutdown would pull the TLS object from under the reading thread.
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _WatchedHttp(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself does
        _Watch.see(self.sock)
        return super().getresponse()


class _WatchedHttps(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself does
        _Watch.see(self.sock)
        return super().getresponse()


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _WatchedHttp


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedHttps


def _pool(proxy: str | None) -> urllib3.PoolManager:
    if proxy is None:
        pool = urllib3.PoolManager(maxsize=8)
    else:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"proxy {_without_password(proxy)!r} cannot be used", advice="write http://host:port")
        headers = {f"proxy-{name}": value for name, value in _credentials(parts.username, parts.password).items()}
        pool = urllib3.ProxyManager(f"{parts.scheme}://{_host(parts.netloc)}", proxy_headers=headers, maxsize=8)
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    return {} if user is None else urllib3.make_headers(basic_auth=f"{unquote(user)}:{unquote(password or '')}")


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)[:200]


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """To the pool if its body was read to the end, else nothing can follow on that connection: closed."""
    with suppress(HTTPError):
        if response.length_remaining == 0:
            response.drain_conn()
            return
    response.close()


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _retry_after_s(text: str | None, wall_s: Seconds) -> Seconds | None:
    """Seconds or an HTTP date (RFC 9110, 10.2.3)."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - wall_s)


def _reason(error: HTTPError) -> str:
    """The innermost sentence; urllib3's own is full of object addresses."""
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None and cause is not inner:
        inner = cause
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    return {"ReadTimeoutError": "no answer in time", "TimeoutError": "no answer in time"}.get(
        type(inner).__name__, type(inner).__name__
    )
