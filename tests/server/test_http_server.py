"""Where the HTTP server listens, and what it does with connections that go nowhere."""

import asyncio
import socket
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from kensho.base.errors import ConfigError, PortInUse, UsageError
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


REQUEST = b"GET /there HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.real
def test_it_answers_and_closes_and_can_be_closed_twice() -> None:
    async def main() -> None:
        server = HttpServer("127.0.0.1", 0, is_remote_allowed=False)
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
        server = HttpServer("127.0.0.1", 0, is_remote_allowed=False)
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
        server = HttpServer("127.0.0.1", 0, is_remote_allowed=False)
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
        server = HttpServer("127.0.0.1", 0, is_remote_allowed=False)
        await server.start(slow)
        assert (await talk(server, REQUEST)).startswith(b"HTTP/1.1 200")
        await server.close(grace_s=0.0)

    asyncio.run(main())


def test_where_it_cannot_or_must_not_listen_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse):
        HttpServer("127.0.0.1", taken.getsockname()[1], is_remote_allowed=False)
    with pytest.raises(UsageError, match="other machines"):
        HttpServer("0.0.0.0", 0, is_remote_allowed=False)
    for host in ("203.0.113.7", "no.such.name.invalid", "", "a\0b", "x" * 300):
        with pytest.raises(ConfigError):
            HttpServer(host, 0, is_remote_allowed=False)


def test_what_others_reach_is_allowed_by_word_and_any_family_works() -> None:
    async def main() -> None:
        for host, remote in (("0.0.0.0", True), ("localhost", False), ("::1", False)):
            try:
                server = HttpServer(host, 0, is_remote_allowed=remote)
            except ConfigError:
                assert host == "::1"  # a machine without IPv6
                continue
            assert server.is_remote == remote
            await server.close(grace_s=0.0)

    asyncio.run(main())
