"""What the boundary between program and host costs, with a model that computes nothing or waits busily.

Started by `kensho.runtime.system.process.spawn`, it is such a host itself.
"""

import contextlib
import mmap
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from statistics import median

import numpy as np

from harness import print_bar
from host_engines import HERE, PROMPT, engine, show
from kensho.base.clock import SystemClock
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.hosts import frames
from kensho.runtime.hosts.host_source import HostEnds, NewHost
from kensho.runtime.system.process import spawn

BUSY_TOKENS = 64
BUSY_S = 0.008
"""A token of 270M, packed."""


class Stub:
    """Satisfies generation.Model, and computes nothing, for so long."""

    max_context = 1 << 30
    vocab_size = 1 << 32
    piece_tokens = 512

    def __init__(self, busy_s: float = 0.0) -> None:
        self._busy_s = busy_s

    def append(self, ids: Sequence[int]) -> np.ndarray:
        del ids
        until = time.perf_counter() + self._busy_s
        while time.perf_counter() < until:
            pass
        return np.zeros(1, np.float32)

    def rewind(self, position: int) -> None:
        del position

    branch = rewind

    def swap(self) -> None:
        pass

    give_back = swap

    def has_memory(self, positions: int) -> bool:
        return positions >= 0


class Stubs:
    """Hosts that run this file in a spawned interpreter: busy for a while before each token."""

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        del allow_faults
        ends = HostEnds.make()
        words = (*map(str, ends.given), str(self._busy_s))
        return ends.new_host(spawn("host_boundary", words, pass_fds=ends.given, env=env))


class BareSender:
    """A process that sends the time after every 2 ms of work: the cost of waking somebody up, without any of ours."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair()
        code = (
            "import socket, sys, time\nsock = socket.socket(fileno=int(sys.argv[1]))\n"
            "while True:\n    until = time.perf_counter() + 0.002\n"
            "    while time.perf_counter() < until: pass\n"
            "    sock.send(time.monotonic_ns().to_bytes(8, 'little'))\n"
        )
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen([sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor])
        self._process.send_signal(signal.SIGSTOP)

    def latencies_us(self, count: int) -> list[float]:
        self._process.send_signal(signal.SIGCONT)
        found = []
        for _ in range(count):
            sent_ns = int.from_bytes(self._sock.recv(8), "little")
            found.append((time.monotonic_ns() - sent_ns) / 1e3)
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(BlockingIOError):
            while self._sock.recv(4096, socket.MSG_DONTWAIT):
                pass
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._sock.close()


def serve_stub(socket_fd: int, segment_fd: int, busy_s: float) -> None:
    """The real host with a stub for a model; the id it makes is the clock, in tenths of microseconds."""
    from kensho.runtime.engine import generation
    from kensho.runtime.hosts import host_main
    from kensho.runtime.hosts.tensor_segment import TensorSegment

    def now(*_: object) -> int:
        return time.monotonic_ns() // 100 % (1 << 32)

    generation.choose = now
    host_main.Session.load = classmethod(lambda *_, **__: Stub(busy_s))
    sock = socket.socket(fileno=socket_fd)
    host = host_main.Host(host_main.Channel(sock), TensorSegment(segment_fd), allow_faults=False, clock=SystemClock())
    host.serve()


async def boundary_figures(rounds: int) -> None:
    print("\nacross the boundary, with a model that costs nothing")
    folder = LoadedGraph("m", "1", "k", HERE.parent, HERE.parent, "mapped", 1 << 30, "disk", 0.0)  # type: ignore[arg-type]
    paced, quick = engine(folder, Stubs(0.002), tier="mapped"), engine(folder, Stubs(0.0), tier="mapped")
    await paced.start()
    await quick.start()
    bare = BareSender()
    bare_us, latency_us, stream_us, alone_us = [], [], [], []
    for _ in range(rounds):
        bare_us += bare.latencies_us(150)
        async with aclosing(paced.generate(PROMPT, (), Sampling(max_tokens=150))) as stream:
            latency_us += [(time.monotonic_ns() // 100 - token) % (1 << 32) / 10 async for token in stream]
        count = 4000
        began = time.perf_counter()
        async with aclosing(quick.generate(PROMPT, (), Sampling(max_tokens=count))) as stream:
            async for _token in stream:
                pass
        stream_us.append(1e6 * (time.perf_counter() - began) / count)
        began = time.perf_counter()
        request = frames.Generate(1, PROMPT, (), Sampling(max_tokens=count))
        Generator(Stub(), Faults()).run(request, is_cancelled=lambda: False, on_token=lambda _: None)
        alone_us.append(1e6 * (time.perf_counter() - began) / count)
    bare.close()
    show("8 bytes over a bare socket, blocking: what this machine gives now", bare_us, "us")
    latency = show("a token, from being made to being handed out", latency_us, "us")
    print_bar("one token across, beyond the bare socket", latency - median(bare_us), 50, "us")
    print_bar("one token across", latency, 50, "us")
    show("a token in a stream at full speed, both processes", stream_us, "us")
    show("the same generator without a host", alone_us, "us")
    sent = {"x": np.random.default_rng(1).random(1 << 20, np.float32)}
    both_ms, check = [], 0
    for _ in range(30 * rounds):
        began = time.perf_counter()
        async with quick.exchange("echo", sent, 5) as arrays:
            both_ms.append(1e3 * (time.perf_counter() - began))
            check += int(arrays["x"][-1] == sent["x"][-1])
    assert check == len(both_ms)
    copy_ms, target = [], np.frombuffer(mmap.mmap(-1, 4 << 20), np.float32)
    for _ in range(100):
        began = time.perf_counter()
        np.copyto(target, sent["x"])
        copy_ms.append(1e3 * (time.perf_counter() - began))
    show("copying 4 MB within a process", copy_ms)
    print_bar("4 MB tensor, each way", show("4 MB there and back", both_ms) / 2, 0.2, "ms")
    await paced.close()
    await quick.close()


async def busy_cost(rounds: int) -> None:
    """With a model that takes the same time always. Two sessions of a real one differ by 5 % in one process: it
    matters where their pages lie."""
    print(f"\na token of {1e3 * BUSY_S:g} ms of busy waiting, {BUSY_TOKENS} tokens a round")
    folder = LoadedGraph("m", "1", "k", HERE.parent, HERE.parent, "mapped", 1 << 30, "disk", 0.0)  # type: ignore[arg-type]
    host = engine(folder, Stubs(BUSY_S), tier="mapped")
    await host.start()
    here, there = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        request = frames.Generate(1, PROMPT, (), Sampling(max_tokens=BUSY_TOKENS))
        Generator(Stub(BUSY_S), Faults()).run(request, is_cancelled=lambda: False, on_token=lambda _: None)
        here.append(1e3 * (time.perf_counter() - began) / BUSY_TOKENS)
        began = time.perf_counter()
        async with aclosing(host.generate(PROMPT, (), Sampling(max_tokens=BUSY_TOKENS))) as stream:
            async for _token in stream:
                pass
        there.append(1e3 * (time.perf_counter() - began) / BUSY_TOKENS)
    alone = show("in this thread, a token", here)
    cost_ms = show("in a host, a token", there) - alone
    print_bar("host cost per token", 1e3 * cost_ms, 500, "us")
    print_bar("host cost per token", 100 * cost_ms / alone, 5, "%")
    await host.close()


if __name__ == "__main__":
    serve_stub(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[-1]))
