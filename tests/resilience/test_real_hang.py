"""Real hosts, one of them stopped with SIGSTOP: it answers nothing and obeys nothing, as a driver that hangs."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import DeadlineMissed
from kensho.base.events import Event, RequestFinished
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.scheduler import SchedulerSettings
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.testing.real_engines import PROMPT_IDS, Stage, compile_demo, two_engines

pytestmark = pytest.mark.real

TEN = Sampling(max_tokens=10)
KNOWN = 60
"""After so many answers an engine's pace is known, and it may be silent for a second."""
AT_ONCE_S = 0.1
"""By the issue; a busy machine's share of it included."""
BACK_S = 30.0


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> LoadedGraph:
    return compile_demo(tmp_path_factory.mktemp("hang"))


def on_stage(graph: LoadedGraph, use: Callable[[Stage, list[int]], Awaitable[None]]) -> list[Event]:
    """`use` gets the stage when all paces are known, and the undisturbed answer. Afterwards all is as before."""

    async def main() -> None:
        settings = SchedulerSettings(breaker=BreakerSettings(ramp_s=0.0))
        async with two_engines(graph, emit=events.append, settings=settings) as stage:
            for _ in range(KNOWN):
                whole = await ask(stage)
                await ask(stage, engine="standby")
            stopped = stage.primary.pid
            assert stopped
            os.kill(stopped, signal.SIGSTOP)
            await use(stage, whole)
            async with asyncio.timeout(BACK_S):
                while not has_recovered(stage):  # noqa: ASYNC110  # as users see it
                    await asyncio.sleep(0.02)
            assert stage.primary.pid not in {None, stopped}
            assert await ask(stage, engine="primary") == whole
            assert stage.scheduler.snapshot().circuits["standby"].counters.failures == 0
        assert (stage.primary.pid, stage.standby.pid) == (None, None)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    events: list[Event] = []
    asyncio.run(main())
    reasons = [event.reason for event in events if event.name == "circuit.restarting"]
    assert reasons == ["a request failed: hang"]
    return [event for event in events if isinstance(event, RequestFinished)][2 * KNOWN : -1]


def has_recovered(stage: Stage) -> bool:
    circuit = stage.scheduler.snapshot().circuits["primary"]
    return (circuit.mode, circuit.counters.failures) == (Mode.CLOSED, 1)


async def ask(stage: Stage, *, engine: str | None = None) -> list[int]:
    async with aclosing(stage.scheduler.submit(PROMPT_IDS, TEN, engine=engine)) as answer:
        return [token async for token in answer]


def test_a_deadline_is_told_at_its_moment(graph: LoadedGraph) -> None:
    async def use(stage: Stage, whole: list[int]) -> None:
        clock = SystemClock()
        for _ in range(3):  # the second one finds the primary busy with its end, and is answered
            due_s = clock.monotonic_s() + 0.5
            try:
                async with aclosing(stage.scheduler.submit(PROMPT_IDS, TEN, deadline_s=due_s)) as answer:
                    assert [token async for token in answer] == whole
            except DeadlineMissed:
                assert abs(clock.monotonic_s() - due_s) < AT_ONCE_S

    outcomes = [(event.outcome, event.engine) for event in on_stage(graph, use)]
    assert outcomes == [("deadline", ""), ("ok", "standby"), ("ok", "standby")]


def test_a_hedged_first_token_comes_when_the_standby_has_it(graph: LoadedGraph) -> None:
    async def use(stage: Stage, whole: list[int]) -> None:
        async with aclosing(stage.scheduler.submit(PROMPT_IDS, TEN, priority=Priority.CRITICAL)) as answer:
            assert [token async for token in answer] == whole
        assert (answer.record.is_hedged, answer.record.engine) == (True, "standby")
        # Three times the p95 of a first token, and one more; both take milliseconds.
        assert answer.record.first_token_ms < AT_ONCE_S * 1e3

    on_stage(graph, use)


def test_logits_are_told_at_their_deadline(graph: LoadedGraph) -> None:
    async def use(stage: Stage, whole: list[int]) -> None:
        clock = SystemClock()
        due_s = clock.monotonic_s() + 0.5
        with pytest.raises(DeadlineMissed):
            await stage.scheduler.logits(PROMPT_IDS, deadline_s=due_s)
        assert abs(clock.monotonic_s() - due_s) < AT_ONCE_S
        assert len(await stage.scheduler.logits(PROMPT_IDS)) > len(whole)

    assert [event.outcome for event in on_stage(graph, use)] == ["deadline", "ok"]


def test_a_reader_who_leaves_is_let_go_at_once(graph: LoadedGraph) -> None:
    async def use(stage: Stage, whole: list[int]) -> None:
        clock = SystemClock()
        reading = asyncio.create_task(ask(stage))
        await asyncio.sleep(0.1)
        began_s = clock.monotonic_s()
        reading.cancel()
        await asyncio.wait({reading})
        assert clock.monotonic_s() - began_s < AT_ONCE_S
        assert await ask(stage) == whole

    assert [event.outcome for event in on_stage(graph, use)] == ["cancelled", "ok"]


def test_closing_does_not_wait_for_a_stopped_host(graph: LoadedGraph) -> None:
    async def main() -> None:
        clock = SystemClock()
        async with two_engines(graph, emit=lambda _: None) as stage:
            assert stage.primary.pid
            os.kill(stage.primary.pid, signal.SIGSTOP)
            with pytest.raises(DeadlineMissed):
                await anext(aiter(stage.scheduler.submit(PROMPT_IDS, TEN, deadline_s=clock.monotonic_s() + 0.2)))
            began_s = clock.monotonic_s()
            await stage.scheduler.close()
            assert clock.monotonic_s() - began_s < 1.5  # half a second to end by itself, then SIGKILL
            assert (stage.primary.pid, stage.standby.pid) == (None, None)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
