"""Hosts that die, hang or freeze: noticed, told, and none is left, whatever happens to its parent."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from one_host import PROMPT, TOKENS, answer, engine

from kensho.base.errors import EngineCrashed, EngineHung
from kensho.base.events import EngineLost, Event
from kensho.base.structs import replace
from kensho.runtime.cache.loaded_graph import LoadedGraph

pytestmark = pytest.mark.real


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_host_is_noticed_and_another_goes_on_with_the_accepted_ids(
    after: int, graph: LoadedGraph, undisturbed: list[int]
) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events) as host:
            await host.start()
            got = []
            stream = host.generate(PROMPT, (), TOKENS)
            host.arm_fault("slow", 1)
            killed_at = 0.0
            with pytest.raises(EngineCrashed) as caught:
                if after == 0:
                    asyncio.get_running_loop().call_later(0.05, os.kill, host.pid, signal.SIGKILL)
                async for token in stream:
                    got.append(token)
                    if len(got) == after:
                        killed_at = time.monotonic()
                        os.kill(host.pid or 0, signal.SIGKILL)
            assert after == 0 or time.monotonic() - killed_at < 1
            assert (caught.value.facts["signal"], caught.value.facts["exit_code"]) == ("SIGKILL", None)
            assert not host.is_alive
            await host.start()
            assert len(got) == after
            assert got + await answer(host, tuple(got)) == undisturbed

    asyncio.run(run())
    assert [event.reason for event in events if isinstance(event, EngineLost)] == ["SIGKILL"]


def test_a_host_that_hangs_is_killed_within_the_budget(graph: LoadedGraph, undisturbed: list[int]) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events, inactivity_s=0.4) as host:
            await host.start()
            host.arm_fault("hang", 1)
            began = time.monotonic()
            with pytest.raises(EngineHung):
                await answer(host)
            assert 0.4 < time.monotonic() - began < 2
            assert not host.is_alive
            await host.start()
            assert await answer(host) == undisturbed
            assert [child.pid for child in psutil.Process().children()] == [host.pid]

    asyncio.run(run())
    assert "no progress" in next(event.reason for event in events if isinstance(event, EngineLost))


def test_a_frozen_process_is_killed_too(graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph, inactivity_s=0.4) as host:
            await host.start()
            os.kill(host.pid or 0, signal.SIGSTOP)
            with pytest.raises(EngineHung):
                await answer(host)

    asyncio.run(run())


def test_a_cancelled_host_that_does_not_stop_is_killed(graph: LoadedGraph) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events, inactivity_s=0.4) as host:
            await host.start()
            host.arm_fault("hang", 1)
            task = asyncio.create_task(answer(host))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not host.is_alive

    asyncio.run(run())
    assert "did not stop" in next(event.reason for event in events if isinstance(event, EngineLost))


def test_a_kill_of_ours_is_told_before_the_process_is_reaped(graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("hang", 1)
            stream = asyncio.create_task(answer(host))
            await asyncio.sleep(0.2)
            process = psutil.Process(host.pid)
            process.suspend()
            killing = asyncio.create_task(host.kill())
            with pytest.raises(EngineCrashed, match="SIGKILL, by us") as caught:
                await stream
            assert caught.value.facts["signal"] == "SIGKILL"
            await killing
            assert not process.is_running()

    asyncio.run(run())


def test_a_host_that_dies_while_idle_is_noticed_without_a_request(graph: LoadedGraph) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events) as host:
            await host.start()
            os.kill(host.pid or 0, signal.SIGSEGV)
            while not any(isinstance(event, EngineLost) for event in events):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not host.is_alive
            with pytest.raises(EngineCrashed, match="not running"):
                await answer(host)

    asyncio.run(asyncio.wait_for(run(), 10))
    assert [event.reason for event in events if isinstance(event, EngineLost)] == ["SIGSEGV"]


def test_the_host_dies_with_a_killed_parent_even_in_the_middle_of_a_hang(graph: LoadedGraph, tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from kensho.base.clock import SystemClock
from kensho.base.inference import Sampling
from kensho.runtime.engine.faults import SLOW_START_S
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.cache.loaded_graph import LoadedGraph
graph = LoadedGraph("m", "1", "k", Path({str(graph.graph_folder)!r}), Path("."), "mapped", 256, "disk", 0.0)
async def main():
    host = EngineHost("e", graph, clock=SystemClock(), emit=lambda _: None, env={{}}, threads=1, max_context=64,
                      start_s=30, inactivity_s=60, allow_faults=True)
    await host.start()
    host.arm_fault("hang", 1)
    print(host.pid, flush=True)
    async for _ in host.generate([1], (), Sampling()): pass
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone


def test_a_file_cut_short_under_a_running_host_costs_a_request_not_the_program(
    graph: LoadedGraph, tmp_path: Path
) -> None:
    # The map's pages are gone: the kernel sends SIGBUS to whoever reads them.
    shutil.copytree(graph.graph_folder, tmp_path / "graph")

    async def run() -> None:
        async with engine(replace(graph, graph_folder=tmp_path / "graph")) as host:
            await host.start()
            os.truncate(tmp_path / "graph" / "weights.bin", 0)
            with pytest.raises(EngineCrashed, match="SIGBUS"):
                await answer(host)
            assert not host.is_alive

    asyncio.run(run())
