"""Whatever a server answers, the source gives the right bytes or a transport error, in bounded time and memory."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, NotFoundAtSource, TransportError
from kensho.delivery import http_source
from kensho.delivery.http_source import HttpSource
from kensho.server.origin import Origin
from kensho.testing.clock import VirtualClock
from kensho.testing.hostile import Answer, hostile_server, reply

pytestmark = pytest.mark.real

BODY = bytes(i % 251 for i in range(200_000))


def _range(source: HttpSource, offset: int = 1000, length: int = 5000) -> bytes:
    return b"".join(source.read_range("packs/x.pack", offset, length))


def _partial(body: bytes, content_range: str, **headers: str) -> Answer:
    return reply("206 Partial Content", body, Content_Range=content_range, **headers)


class TickingClock(VirtualClock):
    """A second passes each time that somebody looks."""

    def monotonic_s(self) -> float:
        self.sleep(1.0)
        return super().monotonic_s()


def test_a_server_that_ignores_range_is_streamed_and_cut() -> None:
    with hostile_server(reply("200 OK", BODY)) as url:
        source = HttpSource(url, clock=VirtualClock())
        assert _range(source) == BODY[1000:6000]
        assert source.bytes_fetched == 6000


def test_a_far_range_of_a_server_that_ignores_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_source, "MAX_SKIP_BYTES", 999)
    with hostile_server(reply("200 OK", BODY)) as url, pytest.raises(TransportError, match="ignores byte ranges"):
        _range(HttpSource(url, clock=VirtualClock()))


WRONG = {
    "another range": _partial(BODY[:5000], "bytes 0-4999/200000"),
    "a longer range": _partial(BODY[1000:7000], "bytes 1000-6999/200000"),
    "no content range": reply("206 Partial Content", BODY[1000:6000]),
    "several ranges": reply("206 Partial Content", b"--x", Content_Type="multipart/byteranges; boundary=x"),
    "a short body": _partial(BODY[1000:5000], "bytes 1000-5999/200000"),
    "a cut body": _partial(BODY[1000:5000], "bytes 1000-5999/200000", Content_Length="5000"),
    "a cut body of all": reply("200 OK", BODY[:5000], Content_Length="200000"),
    "a web page": reply("200 OK", b"<html>sign in</html>", Content_Type="text/html; charset=utf-8"),
    "compressed bytes": _partial(BODY[1000:6000], "bytes 1000-5999/200000", Content_Encoding="gzip"),
    "a spurious 416": reply("416 Range Not Satisfiable"),
    "a 500": reply("500 Internal Server Error", b"oops"),
    "a 401": reply("401 Unauthorized"),
    "no status line": lambda _, connection: connection.sendall(b"\x00\xffgarbage\r\n\r\n"),
    "nothing": lambda _, connection: None,
    "a reset": lambda _, connection: connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"),
    "endless headers": lambda _, connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000),
    "a bad chunk": reply("200 OK", b"zz\r\nabc", Content_Length="", Transfer_Encoding="chunked"),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_a_transport_error_with_advice(answer: Answer) -> None:
    with hostile_server(answer) as url:
        source = HttpSource(url, clock=VirtualClock(), stall_s=2)
        with pytest.raises(TransportError) as caught:
            _range(source)
        assert caught.value.advice
        assert not isinstance(caught.value, NotFoundAtSource)


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone", "403 Forbidden"])
def test_what_a_server_does_not_have_is_not_found_and_its_page_is_counted(status: str) -> None:
    with hostile_server(reply(status, b"<h1>no</h1>", Content_Type="text/html")) as url:
        source = HttpSource(url, clock=VirtualClock())
        with pytest.raises(NotFoundAtSource):
            source.read("metadata/2.root.json", max_bytes=100)
        assert (source.bytes_fetched, source.requests) == (11, 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), ("Fri, 15 Jan 2027 08:01:30 GMT", 90.0), ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0), ("soon", None)],
)
@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_retry_after_is_read_in_both_forms(status: str, header: str, seconds: float | None) -> None:
    with hostile_server(reply(status, b"", Retry_After=header)) as url, pytest.raises(TransportError) as caught:
        HttpSource(url, clock=VirtualClock()).read("x", max_bytes=1)
    assert caught.value.facts.get("retry_after_s") == seconds
    assert not caught.value.facts["is_final"]


def test_a_changed_etag_is_left_to_the_digest() -> None:
    etags = iter(range(10))

    def answer(head: bytes, connection: socket.socket) -> None:
        start = int(head.split(b"bytes=")[1].split(b"-")[0])
        found = _partial(BODY[start : start + 5], f"bytes {start}-{start + 4}/200000", ETag=f'"{next(etags)}"')
        found(head, connection)

    with hostile_server(answer) as url:
        source = HttpSource(url, clock=VirtualClock())
        assert [_range(source, offset, 5) for offset in (0, 5)] == [BODY[:5], BODY[5:10]]


def test_a_redirect_is_followed_within_the_scheme_and_only_so_far() -> None:
    with (
        hostile_server(reply("200 OK", b"{}")) as target,
        hostile_server(reply("302 Found", Location=f"{target}/elsewhere")) as url,
    ):
        source = HttpSource(url, clock=VirtualClock())
        assert source.read("x", max_bytes=10) == b"{}"
        assert source.requests == 2
    for location in ("file:///etc/passwd", "https://127.0.0.1:1/", "ftp://x/y", "/again"):
        with hostile_server(reply("302 Found", Location=location)) as url, pytest.raises(TransportError) as caught:
            HttpSource(url, clock=VirtualClock()).read("x", max_bytes=10)
        assert "redirects" in caught.value.message


def test_a_password_goes_to_its_own_host_only_and_into_no_message() -> None:
    heads: list[bytes] = []

    def keep(head: bytes, connection: socket.socket) -> None:
        heads.append(head)
        reply("200 OK", b"{}")(head, connection)

    with hostile_server(keep) as target:
        HttpSource(target.replace("//", "//user:secret@"), clock=VirtualClock()).read("x", max_bytes=10)
        with hostile_server(reply("302 Found", Location=f"{target}/x")) as url:
            source = HttpSource(url.replace("//", "//user:secret@"), clock=VirtualClock())
            source.read("x", max_bytes=10)
            assert "secret" not in source.name
    assert b"authorization: basic" in heads[0].lower()
    assert b"authorization" not in heads[1].lower()


def test_endless_data_stops_at_the_limit() -> None:
    def endless(_: bytes, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            connection.sendall(BODY)

    with hostile_server(endless) as url:
        source = HttpSource(url, clock=VirtualClock())
        with pytest.raises(TransportError, match="more than 1000 bytes"):
            source.read("metadata/timestamp.json", max_bytes=1000)
        assert source.bytes_fetched == 1001


def _trickle(head: bytes) -> Answer:
    def answer(_: bytes, connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(0.005)

    return answer


def test_a_trickle_is_refused_however_steadily_it_comes() -> None:
    answer = _trickle(b"HTTP/1.1 206 X\r\nContent-Range: bytes 1000-5999/200000\r\nContent-Length: 5000\r\n\r\n")
    with hostile_server(answer) as url, pytest.raises(TransportError, match="too slow"):
        _range(HttpSource(url, clock=TickingClock()))


def test_header_lines_that_dribble_in_meet_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_source, "WINDOW_S", 0.0)
    monkeypatch.setattr(http_source, "MIN_BYTES_PER_S", 10**9)
    start = time.monotonic()
    with hostile_server(_trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ")) as url, pytest.raises(TransportError, match="slow"):
        HttpSource(url, clock=SystemClock(), stall_s=0.3).read("x", max_bytes=10)
    assert time.monotonic() - start < 5


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    def silent(_: bytes, connection: socket.socket) -> None:
        connection.recv(1)

    with hostile_server(silent) as url, pytest.raises(TransportError, match=r"no answer in time|too slow"):
        HttpSource(url, clock=SystemClock(), stall_s=0.2).read("x", max_bytes=10)


def test_nobody_there_is_one_clear_sentence() -> None:
    with pytest.raises(TransportError, match=r"cannot reach http://127.0.0.1:1 \(connection refused\)"):
        HttpSource("http://127.0.0.1:1/", clock=VirtualClock()).read("x", max_bytes=10)
    with pytest.raises(TransportError, match=r"cannot reach http://no.such.invalid"):
        HttpSource("http://no.such.invalid/", clock=VirtualClock()).read("x", max_bytes=10)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Origin]:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "x.pack").write_bytes(BODY)
    with Origin(tmp_path) as origin:
        yield origin


def test_one_connection_serves_many_ranges(repository: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    connects: list[object] = []
    connect = socket.socket.connect

    def counted(self: socket.socket, address: object) -> None:
        connects.append(address)
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", counted)
    source = HttpSource(repository.url, clock=VirtualClock())
    for offset in range(0, 50_000, 5000):
        assert _range(source, offset) == BODY[offset : offset + 5000]
    with pytest.raises(NotFoundAtSource):
        source.read("none", max_bytes=10)
    assert _range(source) == BODY[1000:6000]
    assert len(connects) == 1
    source.close()


def test_a_proxy_is_used_and_a_wrong_one_refused(repository: Origin) -> None:
    heads: list[bytes] = []

    def proxy(head: bytes, connection: socket.socket) -> None:
        heads.append(head)
        reply("200 OK", b"{}")(head, connection)

    with hostile_server(proxy) as url:
        source = HttpSource("http://models.invalid/app", clock=VirtualClock(), proxy=url.replace("//", "//me:pw@"))
        assert source.read("x", max_bytes=10) == b"{}"
    assert heads[0].startswith(b"GET http://models.invalid/app/x HTTP/1.1")
    assert b"proxy-authorization: basic" in heads[0].lower()
    with pytest.raises(ConfigError, match="proxy"):
        HttpSource(repository.url, clock=VirtualClock(), proxy="socks5://user:secret@x")
