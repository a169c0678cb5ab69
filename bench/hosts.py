"""What an engine host costs: its start from each source, a token and 4 MB across, a death noticed, a failure mended.

    python bench/hosts.py [--rounds 7] [--work FOLDER]

The model has the real shape of Gemma 3 270M and random weights (bench/data/make_gemma.py: 75 s, compiled in 10 s, both
kept in --work). Wall times in ms unless said, medians; engines take turns within a round. One thread each, so that two
engines have a core each. There is no peer to compare with: other runtimes have no such boundary to measure.
"""

import argparse
import asyncio
import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from statistics import median

import numpy as np

from harness import ROOT, print_bar, print_machine
from kensho.base.clock import SystemClock
from kensho.base.errors import EngineCrashed, EngineHung
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.in_process import InProcessEngine
from kensho.runtime.engine.session import Session
from kensho.runtime.hosts import frames
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_source import HostEnds, HostSource, NewHost, SpawnedHosts
from kensho.runtime.system.machine import ENGINE_ENVIRONMENT
from kensho.runtime.system.process import spawn
from runtime_compile import prepare

HERE = Path(__file__).resolve()
PROMPT = tuple(range(5, 21))
CONTEXT = 2048
ENV = {"PYTHONPATH": str(HERE.parent), "PATH": os.environ["PATH"]}
TOKENS = 64
BUSY_S = 0.008
"""A token of 270M, packed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "runtime", help="the model, kept")
    args = parser.parse_args()
    graph = compiled(args.work)
    print_machine("onnxruntime", "numpy")
    rounds = args.rounds
    asyncio.run(start_figures(rounds))
    asyncio.run(boundary_figures(rounds))
    asyncio.run(busy_cost(rounds))
    asyncio.run(token_cost(graph, rounds))
    asyncio.run(failure_figures(graph, rounds))
    print_bar_of_load()


def print_bar_of_load() -> None:
    print(f"load average at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")


def compiled(work: Path) -> LoadedGraph:
    model, folder = prepare(work), work / "bench_hosts"
    if not (folder / "ready").exists():
        folder.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, HERE.parent / "runtime_compile.py", "--part", "compile", model, folder], check=True
        )
        (folder / "ready").touch()
    for file in folder.iterdir():
        file.read_bytes()  # into the page cache
    return LoadedGraph("bench", "1", "k", folder, model, "packed", 4096, "disk", 0.0)  # type: ignore[arg-type]


def engine(
    graph: LoadedGraph, hosts: HostSource, *, tier: str, inactivity_s: float = 30.0, name: str = "e"
) -> EngineHost:
    from kensho.base.structs import replace

    return EngineHost(
        name,
        replace(graph, tier=tier),
        clock=SystemClock(),
        emit=lambda _: None,
        env=ENV,
        threads=1,
        max_context=CONTEXT,
        start_s=60,
        inactivity_s=inactivity_s,
        allow_faults=True,
        hosts=hosts,
    )


def show(what: str, values: Sequence[float], unit: str = "ms") -> float:
    middle = median(values)
    print(f"      {what}: {middle:.3f} {unit} ({min(values):.3f} - {max(values):.3f}, n={len(values)})")
    return middle


# --- the start of a host ---


class Forked:
    """Hosts of one fork-server."""

    def __init__(self) -> None:
        self.server = ForkServer.launch(ENV)

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        return await self.server.start_host(env=env, allow_faults=allow_faults)


async def start_figures(rounds: int) -> None:
    print("\nfrom nothing to a host that answers")
    began = time.perf_counter()
    forked = Forked()
    await answers(await forked.start(env=ENV, allow_faults=False))
    launch_ms = 1e3 * (time.perf_counter() - began)
    sources: dict[str, HostSource] = {"spawn": SpawnedHosts(), "fork-server": forked}
    times: dict[str, list[float]] = {name: [] for name in sources}
    memory: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            began = time.perf_counter()
            made = await source.start(env=ENV, allow_faults=False)
            own_mb = await answers(made)
            times[name].append(1e3 * (time.perf_counter() - began))
            memory[name].append(own_mb)
    print(f"      launch of a fork-server and its first host: {launch_ms:.1f} ms")
    for name in sources:
        show(f"{name}, until it answers", times[name])
        show(f"{name}, proportional memory", memory[name], "MB")
    print_bar("fork-server: a host that answers", median(times["fork-server"]), 20, "ms")
    forked.server.close()


async def answers(made: NewHost) -> float:
    """Asks it once, ends it; returns its proportional memory in MB."""
    loop = asyncio.get_running_loop()
    made.sock.setblocking(False)
    await loop.sock_sendall(made.sock, frames.encode(frames.Ping()))
    await loop.sock_recv(made.sock, 99)
    rollup = Path(f"/proc/{made.child.pid}/smaps_rollup").read_text()  # noqa: ASYNC240
    own_mb = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) / 1024
    made.discard(5)
    return own_mb


# --- the boundary itself: a host whose model costs nothing ---


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
    """Hosts that run `serve_stub` in a spawned interpreter: busy for a while before each token."""

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        del allow_faults
        ends = HostEnds.make()
        words = (*map(str, ends.given), "stub", str(self._busy_s))
        return ends.new_host(spawn("hosts", words, pass_fds=ends.given, env=env))


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
    try:
        host.serve()
    except host_main.ParentGoneError:
        return


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


# --- the cost of a host with a real model ---


async def busy_cost(rounds: int) -> None:
    """With a model that takes the same time always. Two sessions of a real one differ by 5 % in one process: it
    matters where their pages lie."""
    print(f"\na token of {1e3 * BUSY_S:g} ms of busy waiting, {TOKENS} tokens a round")
    folder = LoadedGraph("m", "1", "k", HERE.parent, HERE.parent, "mapped", 1 << 30, "disk", 0.0)  # type: ignore[arg-type]
    host = engine(folder, Stubs(BUSY_S), tier="mapped")
    await host.start()
    here, there = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        request = frames.Generate(1, PROMPT, (), Sampling(max_tokens=TOKENS))
        Generator(Stub(BUSY_S), Faults()).run(request, is_cancelled=lambda: False, on_token=lambda _: None)
        here.append(1e3 * (time.perf_counter() - began) / TOKENS)
        began = time.perf_counter()
        async with aclosing(host.generate(PROMPT, (), Sampling(max_tokens=TOKENS))) as stream:
            async for _token in stream:
                pass
        there.append(1e3 * (time.perf_counter() - began) / TOKENS)
    alone = show("in this thread, a token", here)
    cost_ms = show("in a host, a token", there) - alone
    print_bar("host cost per token", 1e3 * cost_ms, 500, "us")
    print_bar("host cost per token", 100 * cost_ms / alone, 5, "%")
    await host.close()


async def token_cost(graph: LoadedGraph, rounds: int) -> None:
    print(f"\na token of 270M, packed, {TOKENS} tokens a round")
    host = engine(graph, SpawnedHosts(), tier="packed")
    thread = InProcessEngine(
        "here",
        graph,
        clock=SystemClock(),
        emit=lambda _: None,
        threads=1,
        max_context=CONTEXT,
        start_s=60,
        inactivity_s=30,
    )
    session = Session.load(graph.graph_folder, graph.model_folder, tier="packed", max_context=CONTEXT, threads=1)
    generator = Generator(session, Faults())
    await host.start()
    await thread.start()
    sampling = Sampling(max_tokens=TOKENS)
    found: dict[str, list[float]] = {"in this thread": [], "in a thread": [], "in a host": []}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    ids: dict[str, list[int]] = {}
    for number in range(rounds + 1):
        for name, values in found.items():
            stamps: list[float] = []
            ids[name] = []
            cpu_ms = cpu_of(os.getpid(), host.pid)
            if name == "in this thread":
                request = frames.Generate(1, PROMPT, (), sampling)

                def note(token: int, stamps: list[float] = stamps, name: str = name) -> None:
                    stamps.append(time.perf_counter())
                    ids[name].append(token)

                generator.run(request, is_cancelled=lambda: False, on_token=note)
            else:
                engine_ = host if name == "in a host" else thread
                async with aclosing(engine_.generate(PROMPT, (), sampling)) as stream:
                    async for token in stream:
                        stamps.append(time.perf_counter())
                        ids[name].append(token)
            if number:
                values.append(1e3 * (stamps[-1] - stamps[0]) / (len(stamps) - 1))
                cpu[name].append((cpu_of(os.getpid(), host.pid) - cpu_ms) / len(stamps))
    assert len({tuple(tokens) for tokens in ids.values()}) == 1
    for name, values in found.items():
        show(f"{name}, a token", values)
    for name, values in cpu.items():
        show(f"{name}, CPU of both processes a token", values)
    session.close()
    await host.close()
    await thread.close()


def cpu_of(*pids: int | None) -> float:
    """CPU time of these processes together, ms, from the scheduler's nanoseconds."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


# --- failures ---


async def failure_figures(graph: LoadedGraph, rounds: int) -> None:
    print("\nfailures, 270M")
    forked = Forked()
    primary = engine(graph, forked, tier="packed", name="primary")
    standby = engine(graph, forked, tier="packed", name="standby")
    await standby.start()
    expected = [token async for token in standby.generate(PROMPT, (), Sampling(max_tokens=40))]
    noticed, whole = [], []
    for _ in range(rounds):
        await primary.start()
        noticed_ms, whole_ms = await fail_over(primary, standby, expected)
        noticed.append(noticed_ms)
        whole.append(whole_ms)
    show("packed host killed in mid-stream: noticed", noticed)
    print_bar("SIGKILL to first token, hot packed standby", show("SIGKILL to first token", whole), 100, "ms")
    await standby.close()

    mapped = engine(graph, forked, tier="mapped", inactivity_s=0.5)
    first: list[float] = []
    spent: list[float] = []
    for _ in range(rounds):
        began, cpu_ms = time.perf_counter(), cpu_of(os.getpid(), forked.server.pid)
        await mapped.start()
        async with aclosing(mapped.generate(PROMPT, (), Sampling(max_tokens=1))) as stream:
            await anext(stream)
        first.append(1e3 * (time.perf_counter() - began))
        spent.append(cpu_of(os.getpid(), forked.server.pid, mapped.pid) - cpu_ms)
        await mapped.close()
    show("fork-server path, CPU of all processes", spent)
    print_bar("fork-server path: new host, mapped, to its first token", show("fork-server path", first), 120, "ms")

    for tier, bar in (("mapped", 10), ("packed", 40)):
        host = engine(graph, forked, tier=tier)
        deaths, own = [], 0.0
        for _ in range(rounds):
            await host.start()
            async with aclosing(host.generate(PROMPT, (), Sampling(max_tokens=4))) as stream:
                async for _token in stream:
                    pass
            own = own_mb(host.pid or 0)
            deaths.append(await death_noticed(host))
        middle = show(f"{tier} host with {own:.0f} MB of its own, killed while it computes: noticed", deaths)
        print_bar(f"death noticed, {own:.0f} MB", middle, bar, "ms")
        await host.close()
    show_order(rounds)

    replaced = []
    for _ in range(rounds):
        await mapped.start()
        mapped.arm_fault("hang", 1)
        began = time.perf_counter()
        try:
            async with aclosing(mapped.generate(PROMPT, (), Sampling(max_tokens=4))) as stream:
                await anext(stream)
        except EngineHung:
            await mapped.start()
        replaced.append(1e3 * (time.perf_counter() - began) - 1e3 * (0.5 + 0.01 * len(PROMPT)))
        await mapped.close()
    print_bar(
        "hung host replaced, beyond its budget", show("hung host replaced, beyond its budget", replaced), 100, "ms"
    )
    forked.server.close()


async def fail_over(primary: EngineHost, standby: EngineHost, expected: list[int]) -> tuple[float, float]:
    """Kill the primary after 20 tokens; (ms until noticed, ms until the standby's first token)."""
    accepted: list[int] = []
    killed = 0.0
    try:
        async with aclosing(primary.generate(PROMPT, (), Sampling(max_tokens=40))) as stream:
            async for token in stream:
                accepted.append(token)
                if len(accepted) == 20:
                    killed = time.perf_counter()
                    os.kill(primary.pid or 0, signal.SIGKILL)
    except EngineCrashed:
        pass
    noticed = time.perf_counter()
    async with aclosing(standby.generate(PROMPT, accepted, Sampling(max_tokens=40))) as stream:
        token = await anext(stream)
    done = time.perf_counter()
    assert [*accepted, token] == expected[: len(accepted) + 1]
    return 1e3 * (noticed - killed), 1e3 * (done - killed)


async def death_noticed(host: EngineHost) -> float:
    """Kill it in a step; ms until the stream says so."""
    host.arm_fault("hang", 1)
    stream = asyncio.ensure_future(anext(host.generate(PROMPT, (), Sampling(max_tokens=4))))
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    os.kill(host.pid or 0, signal.SIGKILL)
    try:
        await stream
    except EngineCrashed:
        return 1e3 * (time.perf_counter() - began)
    raise AssertionError("it is alive")


def own_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) / 1024


def show_order(rounds: int) -> None:
    """Which comes first when a process with 300 MB dies: the end of its socket, or its pidfd."""
    socket_ms, pidfd_ms = [], []
    for _ in range(rounds):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            memory = bytearray(300 << 20)
            memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
            theirs.send(b"x")
            signal.pause()
        theirs.close()
        ours.recv(1)
        pidfd = os.pidfd_open(pid)
        watch = select.poll()
        watch.register(ours, select.POLLIN)
        watch.register(pidfd, select.POLLIN)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while ours.fileno() in (waiting := {ours.fileno(), pidfd}) and len(waiting) == 2:
            ready = {descriptor for descriptor, _ in watch.poll()}
            stamp = 1e3 * (time.perf_counter() - began)
            if ours.fileno() in ready:
                socket_ms.append(stamp)
                watch.unregister(ours)
                watch.poll()
                pidfd_ms.append(1e3 * (time.perf_counter() - began))
                break
            pidfd_ms.append(stamp)
            watch.unregister(pidfd)
            watch.poll()
            socket_ms.append(1e3 * (time.perf_counter() - began))
            break
        os.waitpid(pid, 0)
        os.close(pidfd)
        ours.close()
    show("300 MB of a bare process: its socket ends", socket_ms)
    show("300 MB of a bare process: its pidfd is readable", pidfd_ms)


if __name__ == "__main__":
    if "stub" in sys.argv:
        serve_stub(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[-1]))
    elif ENGINE_ENVIRONMENT.items() <= os.environ.items():
        main()
    else:  # the engine in this process under the same conditions as those in hosts: huge pages among them
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENGINE_ENVIRONMENT})
