"""Hosts that are broken or hostile: each is a clear EngineError, within a bound, and leaves nothing behind."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import EngineCrashed, EngineError, EngineHung
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_source import HostEnds, NewHost
from kensho.runtime.system import process
from kensho.runtime.system.process import spawn

pytestmark = pytest.mark.real

BEGIN = """
import os, socket, sys, time
from kensho.runtime.hosts import frames
from kensho.runtime.hosts.frames import *
from kensho.runtime.system.parent_death import die_with_parent
die_with_parent(int(sys.argv[1]))
sock = socket.socket(fileno=int(sys.argv[2]))
decoder, inbox = frames.Decoder(), []
def receive(kind):
    while True:
        while not inbox:
            data = sock.recv(65536)
            if not data: sys.exit(0)
            inbox.extend(decoder.feed(data))
        message = inbox.pop(0)
        if isinstance(message, kind): return message
def send(message): sock.sendall(frames.encode(message))
"""
LOAD = BEGIN + "receive(Load); send(Pong()); send(Loaded(128, 0.1))\n"


class BadHosts:
    """A source of hosts that do what a script says."""

    def __init__(self, folder: Path, script: str) -> None:
        (folder / "bad_host.py").write_text(script)
        self._env = {"PYTHONPATH": str(folder)}

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        ends = HostEnds.make()
        child = spawn("bad_host", (str(ends.given[0]),), pass_fds=ends.given[:1], env=self._env)
        made = ends.new_host(child)
        for pipe in made.life:  # it has no watch
            os.close(pipe)
        return NewHost(child, made.sock, made.segment)


def make(folder: Path, hosts: BadHosts, *, inactivity_s: float = 0.3) -> EngineHost:
    return EngineHost(
        "bad",
        LoadedGraph("m", "1", "k", folder, folder, "mapped", 256, "disk", 0.0),  # type: ignore[arg-type]
        clock=SystemClock(),
        emit=lambda _: None,
        env={},
        threads=1,
        max_context=64,
        start_s=1.5,
        inactivity_s=inactivity_s,
        hosts=hosts,
    )


def run(folder: Path, script: str, check: Callable[[EngineHost], Awaitable[None]]) -> None:
    process._spawner.get().submit(int).result()  # made once per program
    before = _left()

    async def main() -> None:
        host = make(folder, BadHosts(folder, script))
        await check(host)
        assert not host.is_alive
        await host.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert _left() == before


def _left() -> tuple[object, ...]:
    me = psutil.Process()
    return me.children(recursive=True), me.num_fds(), me.num_threads(), sorted(Path("/dev/shm").iterdir())


class Check:
    """What a test does with the engine."""

    def __init__(self, error: type[EngineError], match: str | None, *, how: str = "generate") -> None:
        self._error = error
        self._match = match
        self._how = how

    async def __call__(self, host: EngineHost) -> None:
        if self._how == "start":
            with pytest.raises(self._error, match=self._match):
                await host.start()
            return
        await host.start()
        work: Coroutine[object, object, object] = host.logits([1, 2]) if self._how == "logits" else self._generate(host)
        with pytest.raises(self._error, match=self._match):
            await work

    async def _generate(self, host: EngineHost) -> None:
        async for _ in host.generate([1, 2], (), Sampling()):
            pass


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        ("import ctypes\nctypes.CDLL('libnothere.so.9')", EngineCrashed, "libnothere"),
        (BEGIN + "os._exit(3)", EngineCrashed, "exit code 3"),
        (BEGIN + "os.abort()", EngineCrashed, "SIGABRT"),
        (BEGIN + "sock.close(); time.sleep(60)", EngineCrashed, "SIGKILL"),
        (BEGIN + "sock.sendall(b'GET / HTTP/1.1' * 9); time.sleep(60)", EngineError, "malformed"),
        (BEGIN + "send(Token(1, 1)); time.sleep(60)", EngineError, "unexpected Token"),
        (BEGIN + "time.sleep(60)", EngineHung, "did not load"),
    ],
    ids=["no library", "exit", "abort", "closed socket", "no frames", "wrong message", "silence"],
)
def test_a_host_that_fails_at_its_start(
    script: str, error: type[EngineError], match: str | None, tmp_path: Path
) -> None:
    run(tmp_path, script, Check(error, match, how="start"))


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        ("send(Token(1, 5)); sock.sendall(encode(Token(1, 6))[:7]); sys.exit(0)", EngineCrashed, "middle of a message"),
        ("sock.sendall(b'\\xff' * 99); time.sleep(60)", EngineError, "malformed"),
        ("sock.sendall(encode(Token(1, 6))[:7]); time.sleep(60)", EngineHung, "no progress"),
        ("send(Failed(1, {'code': 7, 'facts': [1]})); time.sleep(60)", EngineError, None),
        ("sock.sendall(b'\\x03\\x00\\x00\\x00\\x08[[['); time.sleep(60)", EngineError, "malformed"),
    ],
    ids=["cut in a frame and gone", "no frames", "cut in a frame and silent", "odd error", "no JSON"],
)
def test_a_host_that_fails_in_mid_stream(
    script: str, error: type[EngineError], match: str | None, tmp_path: Path
) -> None:
    async def check(host: EngineHost) -> None:
        await Check(error, match)(host)
        await host.kill()

    run(tmp_path, LOAD + "receive(Generate)\n" + script, check)


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        (
            "send(Exchanged(1, (TensorHeader('logits', 'float32', (1 << 20,), 0),)))",
            EngineError,
            "are claimed, the memory",
        ),
        ("send(Exchanged(1, (TensorHeader('logits', 'float32', (1 << 28,), 0),)))", EngineError, "out of bounds"),
        ("send(Exchanged(1, (TensorHeader('logits', 'float32', (2,), 3),)))", EngineError, "out of bounds"),
        ("send(Exchanged(1, (TensorHeader('logits', 'int64', (2,), 0),)))", EngineError, "did not answer with logits"),
        ("send(Exchanged(1, ()))", EngineError, "did not answer with logits"),
        ("sock.sendall(encode(Exchanged(1, ()))[:8]); sys.exit(0)", EngineCrashed, "middle of a message"),
    ],
    ids=["smaller than claimed", "huge", "not aligned", "other type", "nothing", "cut"],
)
def test_a_host_that_lies_about_tensors(
    script: str, error: type[EngineError], match: str | None, tmp_path: Path
) -> None:
    async def check(host: EngineHost) -> None:
        await Check(error, match, how="logits")(host)
        await host.kill()

    run(tmp_path, LOAD + "receive(Exchange)\n" + script + "\ntime.sleep(60)", check)


def test_views_of_a_host_that_dies_stay_readable(tmp_path: Path) -> None:
    async def check(host: EngineHost) -> None:
        await host.start()
        async with host.exchange("echo", {"x": np.arange(100, dtype=np.int64)}, 5) as arrays:
            await host.kill()
            assert arrays["x"].sum() == 4950

    script = "headers = receive(Exchange).tensors\nsend(Exchanged(1, headers))\ntime.sleep(60)"
    run(tmp_path, LOAD + script, check)


class HeldSockets(BadHosts):
    """Another process of this program (here: itself) has a copy of the host's end of the socket."""

    held: int | None = None

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        ends = HostEnds.make()
        self.held = os.dup(ends.given[0])
        child = spawn("bad_host", (str(ends.given[0]),), pass_fds=ends.given[:1], env=self._env)
        made = ends.new_host(child)
        for pipe in made.life:
            os.close(pipe)
        return NewHost(child, made.sock, made.segment)


def test_a_death_is_noticed_even_if_the_socket_stays_open_elsewhere(tmp_path: Path) -> None:
    hosts = HeldSockets(tmp_path, LOAD + "receive(Generate)\nsend(Token(1, 5))\nos.abort()")

    async def main() -> None:
        host = make(tmp_path, hosts, inactivity_s=20)
        await host.start()
        stream = host.generate([1], (), Sampling())
        assert await anext(stream) == 5
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(EngineCrashed, match="SIGABRT"):
            await anext(stream)
        assert asyncio.get_running_loop().time() - began_s < 5  # long before the budget
        await host.close()

    asyncio.run(main())
    assert hosts.held
    os.close(hosts.held)


def test_half_messages_are_no_progress_and_whole_ones_arrive_however_they_are_cut(tmp_path: Path) -> None:
    script = """
frames = b"".join(encode(Token(1, number)) for number in range(5)) + encode(Done(1, "length"))
for byte in frames:
    sock.send(bytes([byte]))
    time.sleep(0.001)
receive(Generate)
while True:
    sock.send(encode(Token(2, 1))[:1])
    time.sleep(60)
"""

    async def check(host: EngineHost) -> None:
        await host.start()
        assert [token async for token in host.generate([1], (), Sampling())] == [0, 1, 2, 3, 4]
        with pytest.raises(EngineHung):
            await anext(host.generate([1], (), Sampling()))

    run(tmp_path, LOAD + "receive(Generate)\n" + script, check)


def test_a_host_that_goes_on_and_on_after_a_cancel_is_killed_within_the_budget_of_a_step(tmp_path: Path) -> None:
    script = LOAD + "receive(Generate)\nwhile True:\n    send(Token(1, 5))\n    time.sleep(0.01)\n"

    async def check(host: EngineHost) -> None:
        await host.start()
        stream = host.generate([1], (), Sampling())
        assert await anext(stream) == 5
        began_s = asyncio.get_running_loop().time()
        await stream.aclose()
        assert 0.3 <= asyncio.get_running_loop().time() - began_s < 2.0

    run(tmp_path, script, check)
