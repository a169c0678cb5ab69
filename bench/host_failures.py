"""How soon a failure of a host is noticed and mended: killed, hung, or not willing to end."""

import asyncio
import mmap
import os
import select
import signal
import socket
import time
from contextlib import aclosing

from harness import print_bar
from host_engines import PROMPT, Forked, cpu_of, engine, own_mb, show
from kensho.base.errors import EngineCrashed, EngineHung
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_process import GRACE_S


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
    await figures_of_closing(mapped, rounds)
    forked.server.close()


async def figures_of_closing(host: EngineHost, rounds: int) -> None:
    """One that does not end when it is told to, by SIGTERM or by its closed socket."""
    closed = []
    for _ in range(rounds):
        await host.start()
        host.arm_fault("ignore_sigterm", 1)
        async with aclosing(host.generate(PROMPT, (), Sampling(max_tokens=4))) as stream:
            async for _token in stream:
                pass
        os.kill(host.pid or 0, signal.SIGTERM)
        began = time.perf_counter()
        await host.close()
        closed.append(1e3 * (time.perf_counter() - began - GRACE_S))
    what = "a host that ignores SIGTERM and its closed socket: reaped, beyond its half second"
    print_bar(what, show(what, closed), 40, "ms")


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
        is_socket_first = ours.fileno() in {descriptor for descriptor, _ in watch.poll()}
        first_ms = 1e3 * (time.perf_counter() - began)
        watch.unregister(ours if is_socket_first else pidfd)
        watch.poll()
        last_ms = 1e3 * (time.perf_counter() - began)
        socket_ms.append(first_ms if is_socket_first else last_ms)
        pidfd_ms.append(last_ms if is_socket_first else first_ms)
        os.waitpid(pid, 0)
        os.close(pidfd)
        ours.close()
    show("300 MB of a bare process: its socket ends", socket_ms)
    show("300 MB of a bare process: its pidfd is readable", pidfd_ms)
