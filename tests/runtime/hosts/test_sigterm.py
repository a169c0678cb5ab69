"""SIGTERM: a host ends when it is told to, wherever it is from; one that does not is killed, by us or by the kernel."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import pytest
from one_host import PROMPT, TOKENS, answer, engine

from kensho.base.errors import EngineCrashed, EngineHung
from kensho.base.events import EngineLost, Event
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host_process import GRACE_S, REAP_S
from kensho.runtime.hosts.host_source import NewHost

pytestmark = pytest.mark.real

KINDS = ("spawned", "forked", "preforked")
PROGRAM = """
import os, signal, sys
from kensho.runtime.hosts import forked, prefork
kind, graph_folder, model_folder, fault = sys.argv[1:]
if fault == "none":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if kind == "preforked":  # of use in earnest only where no faults are allowed; here they are
    become_host = forked.become_host
    forked.become_host = lambda *args, **given: become_host(*args, **{**given, "allow_faults": True})
    first = prefork.prefork()
import asyncio, time
from pathlib import Path
from kensho.base.clock import SystemClock
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_source import SpawnedHosts, adopt

class Hosts:
    server = None
    async def start(self, **given):
        if kind == "preforked":
            return adopt(first)
        self.server = self.server or ForkServer.launch({})
        return await self.server.start_host(**given)

graph = LoadedGraph("m", "1", "k", Path(graph_folder), Path(model_folder), "mapped", 256, "disk", 0.0)

async def main():
    hosts = SpawnedHosts() if kind == "spawned" else Hosts()
    host = EngineHost("e", graph, clock=SystemClock(), emit=lambda event: print(event.reason, flush=True)
                      if event.name == "runtime.engine.lost" else None,
                      env={}, threads=1, max_context=128, start_s=30, inactivity_s=20, allow_faults=True, hosts=hosts)
    await host.start()
    print(host.pid, flush=True)
    if fault != "none":
        host.arm_fault(fault, 1)
    while (word := (await asyncio.to_thread(sys.stdin.readline)).strip()) == "ask":
        answer = host.generate(PROMPT, (), Sampling(max_tokens=24))
        print(*[token async for token in answer], flush=True)
    began_s = time.monotonic()
    await host.close()
    print(time.monotonic() - began_s, flush=True)
    if hosts_server := getattr(hosts, "server", None):
        hosts_server.close()
asyncio.run(main())
"""


class Program:
    """A program with one host, in a process of its own: it answers when asked, and closes the host when told so."""

    def __init__(self, kind: str, graph: LoadedGraph, fault: str) -> None:
        folders = (str(graph.graph_folder), str(graph.model_folder))
        script = PROGRAM.replace("PROMPT", repr(PROMPT))
        command = [sys.executable, "-c", script, kind, *folders, fault]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.host = psutil.Process(int(self.read()))

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def say(self, word: str) -> str:
        """What it answers."""
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.read()


@contextmanager
def program(kind: str, graph: LoadedGraph, fault: str) -> Iterator[Program]:
    it = Program(kind, graph, fault)
    try:
        yield it
    finally:
        it.process.kill()
        it.process.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_ends_at_sigterm_even_where_its_program_ignores_and_blocks_that(kind: str, graph: LoadedGraph) -> None:
    with program(kind, graph, "none") as it:
        it.host.terminate()
        until_gone([it.host])
        assert it.read() == "SIGTERM"
        it.process.terminate()
        assert float(it.say("close")) < GRACE_S  # the program itself is still there, as it wanted
        assert it.process.wait(10) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_ignores_sigterm_and_its_closed_socket_is_killed_after_the_grace(
    kind: str, graph: LoadedGraph, undisturbed: list[int]
) -> None:
    with program(kind, graph, "ignore_sigterm") as it:
        for _ in range(2):
            assert it.say("ask") == " ".join(map(str, undisturbed))
            it.host.terminate()
        assert it.say("ask") == " ".join(map(str, undisturbed))
        assert GRACE_S <= float(it.say("close")) < GRACE_S + REAP_S
        assert not lives(it.host)
        assert it.process.wait(10) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_program_leaves_no_host_that_ignores_sigterm(kind: str, graph: LoadedGraph) -> None:
    with program(kind, graph, "ignore_sigterm") as it:
        it.say("ask")
        it.host.terminate()
        it.say("ask")
        others = psutil.Process(it.process.pid).children(recursive=True)
        assert it.host in others
        it.process.kill()
        until_gone(others)


def until_gone(processes: list[psutil.Process]) -> None:
    end_s = time.monotonic() + 5
    while any(map(lives, processes)):
        assert time.monotonic() < end_s, "it did not end"
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    """Not a zombie either, which process 1 reaps when it likes."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Forked:
    """Every host is a fork of one fork-server."""

    def __init__(self) -> None:
        self.server: ForkServer | None = None

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        self.server = self.server or ForkServer.launch({})
        return await self.server.start_host(env=env, allow_faults=allow_faults)


def test_a_fork_server_ends_at_sigterm_and_its_hosts_with_it_whatever_they_ignore(graph: LoadedGraph) -> None:
    events: list[Event] = []

    async def run() -> None:
        hosts = Forked()
        async with engine(graph, events, hosts=hosts) as host:
            await host.start()
            host.arm_fault("ignore_sigterm", 1)
            await answer(host)
            assert hosts.server
            os.kill(hosts.server.pid, signal.SIGTERM)
            while host.is_alive:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await host.close()
            assert hosts.server.close().reason == "SIGTERM"

    asyncio.run(asyncio.wait_for(run(), 30))
    assert [event.reason for event in events if isinstance(event, EngineLost)] == ["SIGKILL"]


def test_a_host_told_to_end_in_mid_stream_is_a_crash_and_another_goes_on(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events) as host:
            await host.start()
            host.arm_fault("slow", 1)
            got = []
            with pytest.raises(EngineCrashed) as caught:
                async for token in host.generate(PROMPT, (), TOKENS):
                    got.append(token)
                    if len(got) == 2:
                        os.kill(host.pid or 0, signal.SIGTERM)
            assert caught.value.facts["signal"] == "SIGTERM"
            assert len(got) == 2
            await host.start()
            assert got + await answer(host, tuple(got)) == undisturbed

    asyncio.run(run())
    assert [event.reason for event in events if isinstance(event, EngineLost)] == ["SIGTERM"]


def test_a_host_that_ignores_sigterm_and_hangs_is_killed_within_the_budget(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph, inactivity_s=0.4) as host:
            await host.start()
            host.arm_fault("ignore_sigterm", 1)
            await answer(host)
            os.kill(host.pid or 0, signal.SIGTERM)
            host.arm_fault("hang", 1)
            began_s = time.monotonic()
            with pytest.raises(EngineHung):
                await answer(host)
            assert time.monotonic() - began_s < 2
            await host.start()
            assert await answer(host) == undisturbed
            host.arm_fault("ignore_sigterm", 1)
            await answer(host)
            began_s = time.monotonic()
            await host.kill()
            assert time.monotonic() - began_s < GRACE_S  # nobody is asked
            await host.start()
            host.clear_faults()
            assert await answer(host) == undisturbed

    asyncio.run(run())
