"""The scheduler over two real engine hosts: SIGKILL from outside, in mid-stream, as often as it takes to believe it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kensho.base.clock import SystemClock
from kensho.base.events import CircuitChanged, Event, StreamMoved
from kensho.base.ids import digest_of
from kensho.base.inference import Sampling
from kensho.resilience.circuit import BreakerSettings
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.runtime.cache.header import KeyFields, graph_key
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.system.machine import read_machine
from kensho.testing.kills import KillReport, kill_rounds
from kensho.testing.real_engines import compile_demo, two_engines

pytestmark = pytest.mark.real

PROMPT = (2, 301, 302)
SAMPLING = Sampling(max_tokens=100)


def key() -> KeyFields:
    machine, digest = read_machine(), digest_of(b"tiny")
    return KeyFields(
        digest, digest, digest, machine.engine_version, machine.arch, machine.system, machine.cpu_features, 256
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> LoadedGraph:
    folder = tmp_path_factory.mktemp("failover")
    script = Path(__file__).parents[2] / "bench" / "data" / "make_gemma.py"
    subprocess.run([sys.executable, script, folder / "model", "--size", "tiny"], check=True, capture_output=True)
    (folder / "graph").mkdir()
    job = CompileJob("m", "1", str(folder / "model"), str(folder / "graph"), 256, 1, key())
    asyncio.run(Compiler(env={}, stall_s=60, emit=lambda _: None).compile(job))
    return LoadedGraph("m", "1", graph_key(key()), folder / "graph", folder / "model", "mapped", 256, "compile", 0.0)


class Story:
    """The events so far; `until` waits for one more that makes the condition true."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20.0):
            while not condition():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def opened(graph: LoadedGraph, story: Story) -> AsyncIterator[tuple[Scheduler, EngineHost]]:
    clock = SystemClock()
    primary, standby = (
        EngineHost(
            name,
            graph,
            clock=clock,
            emit=story.emit,
            env={},
            threads=1,
            max_context=128,
            start_s=30,
            inactivity_s=20,
        )
        for name in ("primary", "standby")
    )
    scheduler = Scheduler(
        primary,
        standby,
        model="m",
        version="1",
        tier_of=lambda _: "mapped",
        canary=Canary(PROMPT),
        settings=SchedulerSettings(breaker=BreakerSettings(restart_open_s=0.1, ramp_s=0.0)),
        clock=clock,
        rng=random.Random(1).random,
        emit=story.emit,
    )
    async with scheduler:
        await story.until(lambda: scheduler.snapshot().slots == 2)
        yield scheduler, primary
    assert primary.pid is None
    assert standby.pid is None


def test_no_token_is_lost_when_the_host_is_killed_and_the_primary_returns_by_itself(compiled: LoadedGraph) -> None:
    async def main() -> None:
        story = Story()
        async with opened(compiled, story) as (scheduler, primary):
            undisturbed = [token async for token in scheduler.submit(PROMPT, SAMPLING)]
            assert len(undisturbed) == 100
            for round_trips, kill_at in enumerate((1, 30, 60), start=1):
                got: list[int] = []
                async for token in scheduler.submit(PROMPT, SAMPLING):
                    got.append(token)
                    if len(got) == kill_at:
                        assert primary.pid is not None
                        os.kill(primary.pid, signal.SIGKILL)
                assert got == undisturbed
                await story.until(lambda n=round_trips: changes(story).count("CLOSED") == n)
                assert primary.pid is not None
            answer = scheduler.submit(PROMPT, SAMPLING)
            assert [token async for token in answer] == undisturbed
            assert (answer.record.engine, answer.record.failovers) == ("primary", 0)
        assert changes(story) == ["RESTARTING", "HALF_OPEN", "CLOSED"] * 3
        moved = [event for event in story.events if isinstance(event, StreamMoved)]
        # A small model is quick: what had arrived before the kill may be the whole rest of a stream.
        assert 1 <= len(moved) <= 3
        assert {(event.from_engine, event.to_engine) for event in moved} == {("primary", "standby")}

    asyncio.run(main())


def changes(story: Story) -> list[str]:
    return [event.to_state for event in story.events if isinstance(event, CircuitChanged)]


def test_no_kill_loses_or_repeats_a_token(tmp_path: Path) -> None:
    """A sample; `bench/failover.py` kills a thousand times and measures the gaps."""

    async def main() -> KillReport:
        async with two_engines(graph, emit=lambda _: None) as stage:
            return await kill_rounds(stage, kills=12, rng=random.Random(3).random)

    graph = compile_demo(tmp_path)
    report = asyncio.run(main())
    assert (report.moved, report.wrong) == (12, 0)
