"""What differs when an engine has no process of its own. The rules that all engines share: tests/conformance."""

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, EngineCrashed, EngineError, EngineHung
from kensho.base.events import EngineLost, EngineStarted, Event, GraphLoaded
from kensho.base.inference import Sampling
from kensho.base.structs import replace
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.in_process import InProcessEngine
from kensho.runtime.engine.session import Session

pytestmark = pytest.mark.real

PROMPT = (2, 300, 301)


def make(graph: LoadedGraph, events: list[Event], *, inactivity_s: float = 20, start_s: float = 30) -> InProcessEngine:
    return InProcessEngine(
        "here",
        graph,
        clock=SystemClock(),
        emit=events.append,
        threads=1,
        max_context=128,
        start_s=start_s,
        inactivity_s=inactivity_s,
    )


async def answer(engine: InProcessEngine) -> list[int]:
    return [token async for token in engine.generate(PROMPT, (), Sampling(max_tokens=8))]


def test_it_loads_tells_it_and_gives_the_logits_of_the_session(graph: LoadedGraph) -> None:
    events: list[Event] = []
    session = Session.load(graph.graph_folder, graph.model_folder, tier="mapped", threads=1)

    async def run() -> None:
        engine = make(graph, events)
        await engine.start()
        assert engine.pid is None
        assert np.array_equal(await engine.logits(PROMPT), session.append(PROMPT))
        with pytest.raises(ConfigError):
            await engine.logits(())
        with pytest.raises(ConfigError, match="isolation=process"):
            engine.arm_fault("crash", 1)
        engine.clear_faults()
        await engine.close()

    asyncio.run(run())
    session.close()
    assert [type(event) for event in events] == [EngineStarted, GraphLoaded]


def test_the_loop_goes_on_while_it_computes(graph: LoadedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Session.append

    def slow(self: Session, ids: Sequence[int]) -> NDArray[np.float32]:
        time.sleep(0.02)
        return append(self, ids)

    monkeypatch.setattr(Session, "append", slow)

    async def run() -> None:
        engine = make(graph, [])
        await engine.start()
        task, turns = asyncio.create_task(answer(engine)), 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 30
        await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "expected", "survives"),
    [
        (MemoryError("arena"), EngineError, True),
        (EngineError("a step failed"), EngineError, True),
        (ValueError("of a library"), EngineCrashed, False),
    ],
    ids=["memory", "ours", "foreign"],
)
def test_what_fails_in_the_engine_is_an_engine_error(
    error: Exception,
    expected: type[EngineError],
    survives: bool,
    graph: LoadedGraph,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Event] = []
    append = Session.append

    def fail(self: Session, ids: Sequence[int]) -> NDArray[np.float32]:
        monkeypatch.setattr(Session, "append", append)
        raise error

    async def run() -> None:
        engine = make(graph, events)
        await engine.start()
        right = await answer(engine)
        monkeypatch.setattr(Session, "append", fail)
        with pytest.raises(expected):
            await answer(engine)
        assert engine.is_alive == survives
        await engine.start()
        assert await answer(engine) == right
        await engine.close()

    asyncio.run(run())
    assert any(isinstance(event, EngineLost) for event in events) is not survives


def test_an_engine_that_hangs_is_left_behind_and_another_is_loaded(
    graph: LoadedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    append, go_on = Session.append, threading.Event()

    def hang(self: Session, ids: Sequence[int]) -> NDArray[np.float32]:
        go_on.wait(30)
        return append(self, ids)

    async def run() -> None:
        engine = make(graph, events, inactivity_s=0.2)
        await engine.start()
        right = await answer(engine)
        monkeypatch.setattr(Session, "append", hang)
        with pytest.raises(EngineHung, match="was dropped"):
            await answer(engine)
        assert not engine.is_alive
        monkeypatch.setattr(Session, "append", append)
        await engine.start()
        assert await answer(engine) == right
        await engine.close()
        go_on.set()

    asyncio.run(run())
    assert "left behind" in next(event.reason for event in events if isinstance(event, EngineLost))


def test_a_graph_that_cannot_be_loaded_or_not_in_time_is_an_error(graph: LoadedGraph) -> None:
    async def run() -> None:
        engine = make(replace(graph, graph_folder=graph.model_folder), [])
        for _ in range(2):
            with pytest.raises(EngineError, match="cannot be loaded"):
                await engine.start()
        assert not engine.is_alive
        await engine.close()
        slow = make(graph, [], start_s=0.0001)
        with pytest.raises(EngineHung, match="did not load"):
            await slow.start()
        await slow.close()

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]
