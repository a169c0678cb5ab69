"""Where the HTTP server listens, and what it does with connections that go nowhere."""

import asyncio
import socket
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from kensho.base.errors import ConfigError, PortInUse, UsageError
from kensho.base.events import ConnectionsScarce, Event
from kensho.server import http_server
from kensho.server.http_server import HttpServer
from kensho.server.responses import send_json


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, 200, {"path": scope["path"]})


async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def talk(server: HttpServer, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection(server.address, server.port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def make(
    host: str, port: int, *, is_remote_allowed: bool = False, places: int = 100, events: list[Event] | None = None
) -> HttpServer:
    emit = [].append if events is None else events.append
    return HttpServer(host, port, is_remote_allowed=is_remote_allowed, places=places, emit=emit)


REQUEST = b"GET /there HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.real
def test_it_answers_and_closes_and_can_be_closed_twice() -> None:
    async def main() -> None:
        server = make("127.0.0.1", 0)
        await server.start(hello)
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert (await talk(server, REQUEST)).endswith(b'{"path":"/there"}')
        await server.close(grace_s=1.0)
        await server.close(grace_s=1.0)
        with pytest.raises(OSError):
            await talk(server, REQUEST)

    asyncio.run(main())


@pytest.mark.real
def test_closing_ends_what_does_not_end_by_itself() -> None:
    async def main() -> None:
        server = make("127.0.0.1", 0)
        await server.start(stuck)
        asking = asyncio.create_task(talk(server, REQUEST))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await server.close(grace_s=0.0)
        assert b"200 OK" not in await asking

    asyncio.run(main())


@pytest.mark.real
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((), id="nothing"),
        pytest.param((b"GET / HT", b"TP/1.1\r\n", b"Host: lo"), id="drop by drop"),
        pytest.param((REQUEST.replace(b"Connection: close\r\n", b""), b"GET / HT"), id="the second one"),
    ],
)
def test_a_head_that_does_not_come_is_not_waited_for(parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.03)

    async def main() -> Any:
        server = make("127.0.0.1", 0)
        await server.start(hello)
        began_s = asyncio.get_running_loop().time()
        await talk(server, *parts, pause_s=0.005)
        assert asyncio.get_running_loop().time() - began_s < 2
        await server.close(grace_s=0.0)

    asyncio.run(main())


@pytest.mark.real
def test_a_slow_answer_is_not_taken_for_a_slow_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.01)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.04)
        await hello(scope, receive, send)

    async def main() -> None:
        server = make("127.0.0.1", 0)
        await server.start(slow)
        assert (await talk(server, REQUEST)).startswith(b"HTTP/1.1 200")
        await server.close(grace_s=0.0)

    asyncio.run(main())


ASK = b"GET /there HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """The head and the body of an answer; empty if the connection was closed instead."""
    try:
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return head + await reader.readexactly(length)
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""


@pytest.mark.real
def test_a_newcomer_takes_the_place_of_who_has_asked_for_nothing_the_longest() -> None:
    events: list[Event] = []

    async def main() -> None:
        server = make("127.0.0.1", 0, places=3, events=events)
        await server.start(hello)
        connections = [await asyncio.open_connection(server.address, server.port) for _ in range(3)]
        (first, _), (second, asking), (third, _) = connections
        asking.write(ASK)
        assert b"there" in await answer_of(second)  # it waits since now: the first and the third do since before
        for closed in (first, third):
            connections.append(await asyncio.open_connection(server.address, server.port))
            assert await answer_of(closed) == b""
        for reader, writer in (connections[1], *connections[3:]):
            writer.write(ASK)
            assert b"there" in await answer_of(reader)
        await server.close(grace_s=0.0)
        for _, writer in connections:
            writer.close()

    asyncio.run(main())
    assert [(event.closed, event.refused) for event in events if isinstance(event, ConnectionsScarce)] == [(2, 0)]


@pytest.mark.real
def test_while_all_are_busy_a_newcomer_is_told_and_the_next_ones_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TOLD", 2)
    events: list[Event] = []

    async def main() -> None:
        is_over = asyncio.Event()

        async def busy(scope: Scope, receive: Receive, send: Send) -> None:
            await is_over.wait()
            await hello(scope, receive, send)

        server = make("127.0.0.1", 0, places=2, events=events)
        await server.start(busy)
        connections = [await asyncio.open_connection(server.address, server.port) for _ in range(2)]
        for _, writer in connections:
            writer.write(ASK)
        await asyncio.sleep(0.02)
        connections += [await asyncio.open_connection(server.address, server.port) for _ in range(3)]
        assert await answer_of(connections[4][0]) == b""
        for reader, writer in connections[2:4]:
            writer.write(ASK)
            told = await answer_of(reader)
            assert told.startswith(b"HTTP/1.1 503") and b'"code":"overloaded"' in told
            assert b"retry-after: 1\r\n" in told and await reader.read() == b""
        is_over.set()
        for reader, _ in connections[:2]:
            assert b"there" in await answer_of(reader)
        assert b"there" in await talk(server, REQUEST)
        await server.close(grace_s=0.0)
        for _, writer in connections:
            writer.close()

    asyncio.run(main())
    assert [(event.closed, event.refused) for event in events if isinstance(event, ConnectionsScarce)] == [(1, 3)]


@pytest.mark.real
def test_who_has_its_answer_and_still_sends_is_not_busy() -> None:
    """A client that drips the rest of a body which nobody wants would else keep its place for ever."""

    async def main() -> None:
        server = make("127.0.0.1", 0, places=1)
        await server.start(hello)
        reader, writer = await asyncio.open_connection(server.address, server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b"200" in await answer_of(reader)
        writer.write(b"x")
        assert b"there" in await talk(server, REQUEST)
        assert await answer_of(reader) == b""
        writer.close()
        await server.close(grace_s=0.0)

    asyncio.run(main())


def test_where_it_cannot_or_must_not_listen_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse):
        make("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="other machines"):
        make("0.0.0.0", 0)
    for host in ("203.0.113.7", "no.such.name.invalid", "", "a\0b", "x" * 300):
        with pytest.raises(ConfigError):
            make(host, 0)


def test_what_others_reach_is_allowed_by_word_and_any_family_works() -> None:
    async def main() -> None:
        for host, remote in (("0.0.0.0", True), ("localhost", False), ("::1", False)):
            try:
                server = make(host, 0, is_remote_allowed=remote)
            except ConfigError:
                assert host == "::1"  # a machine without IPv6
                continue
            assert server.is_remote == remote
            await server.close(grace_s=0.0)

    asyncio.run(main())
