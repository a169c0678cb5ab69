"""The daemon's end of the socket, with commands made of a few lines and clients that misbehave."""

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kensho.base.events import ConnectionsScarce, Event
from kensho.server import control
from kensho.server.control import ControlServer
from kensho.server.control_frames import (
    ACCEPTED,
    CANCEL,
    ERR,
    EXIT,
    MAX_REQUEST_BYTES,
    NOT_MINE,
    OUT,
    REQUEST,
    SOCKET_NAME,
    encode_request,
    frame,
    header,
)
from kensho.server.control_streams import NotMine, Request, Streams

Frames = list[tuple[bytes, bytes]]
RUN = frame(REQUEST, encode_request({}, ["run"]))


class Commands:
    """`echo` says its arguments; `wait` ends when it is cancelled; `flood` writes for ever."""

    def __init__(self) -> None:
        self.ended_by: list[str] = []
        self.waiting = 0
        self.began = asyncio.Event()

    def choose(self, request: Request, streams: Streams) -> Coroutine[None, None, int]:
        if not request.argv or not hasattr(self, request.argv[0]):
            raise NotMine("unknown")
        return self._told(getattr(self, request.argv[0]), request, streams)

    async def _told(self, act: Callable[..., Coroutine[None, None, int]], request: Request, streams: Streams) -> int:
        try:
            self.began.set()
            return await act(request, streams)
        except asyncio.CancelledError:
            self.ended_by.append(streams.ended_by)
            print("interrupted", file=streams.err, flush=True)
            return 130

    async def busy(self, request: Request, streams: Streams) -> int:
        return 9 if request.is_too_many else await self.run(request, streams)

    async def echo(self, request: Request, streams: Streams) -> int:
        print(*request.argv[1:], file=streams.out, flush=True)
        print(streams.err.isatty(), end="", file=streams.err, flush=True)
        return 3

    async def run(self, request: Request, streams: Streams) -> int:
        self.waiting += 1
        await asyncio.Event().wait()
        return 0

    async def short(self, request: Request, streams: Streams) -> int:
        await asyncio.sleep(0.02)
        print("done", file=streams.out, flush=True)
        return 0

    async def flood(self, request: Request, streams: Streams) -> int:
        while True:
            print("x" * 10_000, file=streams.out, flush=True)
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(store: Path, events: list[Event] | None = None) -> AsyncIterator[tuple[Commands, ControlServer]]:
    commands = Commands()
    server = ControlServer(store, commands.choose, emit=(events if events is not None else []).append)
    await server.start()
    try:
        yield commands, server
    finally:
        await server.close(grace_s=0.0)


async def ask(store: Path, data: bytes) -> Frames:
    """Every frame that comes back, until the daemon closes."""
    reader, writer = await asyncio.open_unix_connection(str(store / SOCKET_NAME))
    writer.write(data)
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        received += await asyncio.wait_for(reader.read(), 5)
    writer.close()
    frames = []
    while received:
        kind, length = header(received)
        frames.append((kind, bytes(received[5 : 5 + length])))
        del received[: 5 + length]
    return frames


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def request(*argv: str, **about: str) -> bytes:
    return frame(REQUEST, encode_request(about, list(argv)))


def test_a_command_is_accepted_heard_and_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            frames = await ask(tmp_path, request("echo", "bonjour", "caf\xe9", stdout="latin-1/strict", terminal="1"))
            assert frames == [(ACCEPTED, b""), (OUT, b"bonjour caf\xe9\n"), (ERR, b"True"), (EXIT, b"\3")]
            assert await ask(tmp_path, request("dance")) == [(NOT_MINE, b"unknown")]

    asyncio.run(main())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(os.urandom(64), id="garbage"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http"),
        pytest.param(frame(CANCEL), id="cancel first"),
        pytest.param(REQUEST + (MAX_REQUEST_BYTES + 1).to_bytes(4, "little"), id="too long"),
        pytest.param(frame(REQUEST, b"\xff\xff no request"), id="no request"),
        pytest.param(RUN + RUN, id="two requests"),
    ],
)
def test_who_sends_nonsense_is_cut_off_and_others_are_served(data: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            frames = await ask(tmp_path, data)
            assert [kind for kind, _ in frames] in ([], [ACCEPTED])
            assert (await ask(tmp_path, request("echo")))[-1] == (EXIT, b"\3")

    asyncio.run(main())


def test_half_a_request_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_S", 0.01)

    async def main() -> None:
        async with serving(tmp_path) as (_, server):
            assert await ask(tmp_path, RUN[:-3]) == []
            assert await ask(tmp_path, b"") == []
            assert server.commands == 0

    asyncio.run(main())


def test_who_says_nothing_loses_its_place_to_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_PLACES", 3)
    events: list[Event] = []

    async def main() -> None:
        async with serving(tmp_path, events) as (_, server):
            silent = [await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME)) for _ in range(10)]
            silent[9][1].write(RUN[:3])
            for _ in range(3):
                assert (await ask(tmp_path, request("echo")))[-1] == (EXIT, b"\3")
            for reader, _ in silent[:7]:
                assert await reader.read() == b""
            await server.close(grace_s=0.0)
            for _, writer in silent:
                writer.close()

    asyncio.run(main())
    (crowd,) = [event for event in events if isinstance(event, ConnectionsScarce)]
    assert crowd.closed >= 8 and crowd.refused == 0


def test_as_many_commands_run_as_may_and_the_next_one_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_COMMANDS", 2)
    events: list[Event] = []

    async def main() -> None:
        async with serving(tmp_path, events) as (_, server):
            running = [asyncio.create_task(ask(tmp_path, request("busy"))) for _ in range(2)]
            await until(lambda: server.commands == 2)
            assert (await ask(tmp_path, request("busy")))[-1] == (EXIT, b"\x09")
            assert (await ask(tmp_path, request("echo")))[-1] == (EXIT, b"\3")
            await server.close(grace_s=0.0)
            assert {(await one)[-1] for one in running} == {(EXIT, b"\x82")}

    asyncio.run(main())
    assert [(event.closed, event.refused) for event in events if isinstance(event, ConnectionsScarce)] == [(0, 2)]


def test_a_crowd_at_once_is_served(tmp_path: Path) -> None:
    """As many as the kernel keeps; asyncio's own number would let the hundred and first fail."""

    async def main() -> None:
        async with serving(tmp_path):
            clients = []
            most = int(Path("/proc/sys/net/core/somaxconn").read_text())  # noqa: ASYNC240
            for _ in range(min(control.LISTEN_BACKLOG, most) - 1):  # without a turn of the loop
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                clients[-1].connect(str(tmp_path / SOCKET_NAME))
                clients[-1].sendall(request("echo"))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                answers = [await loop.sock_recv(client, 5) for client in clients]
            for client in clients:
                client.close()
            assert answers.count(frame(ACCEPTED)) >= min(control.CONTROL_PLACES, most - 1)

    asyncio.run(main())


def test_going_away_cancels_the_command_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (commands, server):
            _, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
            writer.write(RUN)
            await commands.began.wait()
            assert server.commands == 1
            writer.close()
            await until(lambda: server.commands == 0)
            assert commands.ended_by == ["client"]

    asyncio.run(main())


def test_a_cancel_frame_ends_the_command_which_still_has_its_say(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (commands, _):
            frames = await ask(tmp_path, RUN + frame(CANCEL) + frame(CANCEL))
            assert frames == [(ACCEPTED, b""), (ERR, b"interrupted\n"), (EXIT, b"\x82")]
            assert commands.ended_by == ["client"]

    asyncio.run(main())


def test_who_never_reads_loses_the_command_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_UNREAD_BYTES", 100_000)
    monkeypatch.setattr(control, "LINGER_S", 0.01)

    async def main() -> None:
        async with serving(tmp_path) as (commands, server):
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.connect(str(tmp_path / SOCKET_NAME))
                deaf.sendall(request("flood"))
                await commands.began.wait()
                await until(lambda: server.commands == 0)
                assert commands.ended_by == ["client"]
                assert (await ask(tmp_path, request("echo")))[-1] == (EXIT, b"\3")
                await until(lambda: not server._connections)

    asyncio.run(main())


def test_closing_waits_for_what_ends_soon_and_cancels_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (commands, server):
            long = asyncio.create_task(ask(tmp_path, RUN))
            await commands.began.wait()
            short = asyncio.create_task(ask(tmp_path, request("short")))
            await until(lambda: server.commands == 2)
            await server.close(grace_s=0.1)
            assert (await short)[-2:] == [(OUT, b"done\n"), (EXIT, b"\0")]
            assert (await long)[-1] == (EXIT, b"\x82")
            assert commands.ended_by == ["daemon"]
            assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
            with pytest.raises(FileNotFoundError):
                await ask(tmp_path, RUN)

    asyncio.run(main())


@pytest.mark.parametrize("length", [0, 150])
def test_the_socket_is_for_its_owner_and_replaces_a_stale_one_whatever_its_length(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / ("s" * length)
    store.mkdir(exist_ok=True)
    monkeypatch.chdir(store)  # from inside, any socket has a short name
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(SOCKET_NAME)

    async def main() -> None:
        async with serving(store):
            found = (store / SOCKET_NAME).stat()
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
            reader, writer = await asyncio.open_unix_connection(SOCKET_NAME)
            writer.write(request("echo"))
            assert EXIT in await reader.read()
            writer.close()

    asyncio.run(main())


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_cut_off_even_where_the_file_would_let_him_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            (tmp_path / SOCKET_NAME).chmod(0o777)
            folder = os.open(tmp_path, os.O_PATH)
            child = (
                "import os, socket, sys; os.fchdir(int(sys.argv[1])); os.setgroups([]); os.setuid(65534)\n"
                "s = socket.socket(socket.AF_UNIX); s.connect('daemon.sock'); s.sendall(bytes.fromhex(sys.argv[2]))\n"
                "print(s.recv(99))"
            )
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", child, str(folder), request("echo").hex()],
                pass_fds=[folder],
                capture_output=True,
                text=True,
                check=False,
            )
            os.close(folder)
            assert done.stdout.strip() in ("b''", "") and "ACCEPT" not in done.stdout

    asyncio.run(main())
