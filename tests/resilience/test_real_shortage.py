"""A program with no descriptor left, for real: its engines are not blamed, and come back when there is room again."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kensho.base.errors import EngineError
from kensho.base.events import CanaryFinished, CircuitChanged, Event
from kensho.base.inference import Sampling
from kensho.base.structs import replace
from kensho.resilience.circuit import Mode
from kensho.resilience.scheduler import SchedulerSettings
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.testing.real_engines import PROMPT_IDS, REHEARSAL, Stage, compile_demo, two_engines

pytestmark = pytest.mark.real
SETTINGS = SchedulerSettings(breaker=replace(REHEARSAL, restart_open_s=0.05, open_s=0.2, open_cap_s=0.4))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> LoadedGraph:
    return compile_demo(tmp_path_factory.mktemp("shortage"))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The limit is lowered to what is open now, and what is left below it is taken."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    most = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, before[1]))
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110  # as users see it
            await asyncio.sleep(0.01)


def mode(stage: Stage) -> Mode:
    return stage.scheduler.snapshot().circuits["primary"].mode


def opened(events: Sequence[Event]) -> list[str]:
    """Why a circuit stopped taking requests, each time."""
    stopped = ("OPEN", "HARD_OPEN")
    return [event.reason for event in events if isinstance(event, CircuitChanged) and event.to_state in stopped]


async def ask(stage: Stage) -> Sequence[int]:
    return [token async for token in stage.scheduler.submit(PROMPT_IDS, Sampling(max_tokens=5))]


def test_starts_without_descriptors_end_in_no_start_loop_and_the_standby_answers(graph: LoadedGraph) -> None:
    events = list[Event]()

    async def main() -> None:
        unhandled: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with two_engines(graph, emit=events.append, settings=SETTINGS) as stage:
            assert stage.primary.pid is not None
            with no_descriptors():
                os.kill(stage.primary.pid, signal.SIGKILL)
                await until(lambda: len(opened(events)) >= 4)
                assert len(await ask(stage)) == 5
            await until(lambda: mode(stage) is Mode.CLOSED)
            assert len(await ask(stage)) == 5
        assert unhandled == []

    asyncio.run(main())
    assert set(opened(events)) == {"the start failed: shortage; the machine has no room for it"}


def test_a_canary_without_descriptors_fails_and_is_not_repeated_at_once(graph: LoadedGraph) -> None:
    """It asks for logits: those come through shared memory, and that needs a descriptor."""
    events = list[Event]()

    async def main() -> None:
        async with two_engines(graph, emit=events.append, settings=SETTINGS) as stage:
            with no_descriptors():
                stage.scheduler.force("primary", Mode.FORCED_OPEN)
                stage.scheduler.force("primary", None)
                await until(lambda: len(opened(events)) >= 4)
                canaries = sum(isinstance(event, CanaryFinished) for event in events)
                assert canaries == len(opened(events))
            await until(lambda: mode(stage) is Mode.CLOSED)
            assert stage.scheduler.snapshot().circuits["primary"].counters.restarts == 1

    asyncio.run(main())
    assert set(opened(events)) == {"the canary failed: shortage; the machine has no room for it"}


def test_a_request_for_logits_without_descriptors_is_an_engine_error(graph: LoadedGraph) -> None:
    async def main() -> None:
        async with two_engines(graph, emit=lambda _: None, settings=SETTINGS) as stage:
            with no_descriptors(), pytest.raises(EngineError, match="Too many open files"):
                await stage.primary.logits(PROMPT_IDS)
            assert len(await stage.primary.logits(PROMPT_IDS)) > 0

    asyncio.run(main())
