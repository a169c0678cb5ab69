"""Engines that raise what nobody expects: the guard keeps its tasks, its pace and its circuit."""

import asyncio
import errno
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from guarding import Bench, on_bench

from kensho.base.errors import EngineCrashed, EngineError
from kensho.base.events import CanaryFinished
from kensho.base.inference import Sampling
from kensho.resilience.circuit import Mode
from kensho.resilience.classify import FailureClass
from kensho.testing.engine import ScriptedEngine

NO_DESCRIPTORS = OSError(errno.EMFILE, "Too many open files")


class Raises(ScriptedEngine):
    """`error` comes of its next streams and starts."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.of_streams: Exception | None = None
        self.of_starts: Exception | None = None
        self.of_kills: Exception | None = None
        self.tries = 0

    async def start(self) -> None:
        self.tries += 1
        if self.of_starts:
            raise self.of_starts
        await super().start()

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        self.tries += 1
        if self.of_streams:
            raise self.of_streams
        async for token in super().generate(prompt_ids, accepted_ids, sampling):
            yield token

    async def kill(self) -> None:
        if self.of_kills:
            raise self.of_kills
        await super().kill()


def on_raising(use: Any) -> Bench:
    """`on_bench`, and no task of the guard may end with an exception that nobody gets."""
    unhandled: list[Any] = []

    async def watched(bench: Bench) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        await use(bench)

    bench = on_bench(watched, engine=Raises("primary"))
    assert unhandled == []
    return bench


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [(RuntimeError("what is this"), 120.0), (NO_DESCRIPTORS, 5.0), (EngineError("odd"), 120.0)],
    ids=["foreign", "no descriptors", "ours"],
)
def test_any_exception_in_a_canary_is_a_failed_canary_and_not_the_next_one(error: Exception, wait_s: float) -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.MISMATCH)
        bench.engine.tries, bench.engine.of_streams = 0, error
        await asyncio.sleep(60.1)
        assert (bench.mode, bench.engine.tries) == (Mode.OPEN, 1)
        assert bench.guard.snapshot().leaves_in_s == pytest.approx(wait_s, abs=0.2)
        bench.engine.of_streams = None
        await asyncio.sleep(130.0)
        assert bench.mode is Mode.CLOSED

    bench = on_raising(use)
    first = next(event for event in bench.events if isinstance(event, CanaryFinished))
    assert first.outcome.startswith("failed: ")
    assert bench.engine.kills == 0


def test_a_canary_whose_task_is_cancelled_is_repeated_once_a_second() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.MISMATCH)
        bench.engine.of_streams = asyncio.CancelledError()
        await asyncio.sleep(70.0)
        assert bench.mode is Mode.HALF_OPEN
        assert 9 <= bench.engine.tries <= 12
        bench.engine.of_streams = None
        await asyncio.sleep(2.0)
        assert bench.mode is Mode.CLOSED

    on_raising(use)


@pytest.mark.parametrize("error", [RuntimeError("what is this"), ValueError(), EngineError("no")])
def test_any_exception_in_a_restart_is_a_failed_start(error: Exception) -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.of_starts = error
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(30.0)
        assert bench.mode is Mode.HARD_OPEN
        assert bench.engine.tries == 4

    on_raising(use)


def test_a_want_of_descriptors_is_waited_out_and_no_start_loop() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.of_starts = NO_DESCRIPTORS
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(600.0)
        assert bench.mode is Mode.OPEN
        assert bench.engine.tries <= 9
        bench.engine.of_starts = None
        bench.guard.hurry()
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.CLOSED

    on_raising(use)


def test_any_exception_in_a_first_start_says_that_the_engine_did_not_start() -> None:
    async def use(bench: Bench) -> None:
        bench.engine.of_starts = NO_DESCRIPTORS
        with pytest.raises(EngineCrashed, match=r"did not start: OSError: .*Too many open files"):
            await bench.start()

    on_raising(use)


def test_a_kill_that_fails_in_any_way_leaves_the_process_to_the_kernel() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.of_kills = PermissionError("not yours")
        bench.fail(FailureClass.HANG)
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.HARD_OPEN
        bench.engine.of_kills = None

    on_raising(use)


class SlowKills(ScriptedEngine):
    """Each kill takes a second, and ends its process only then."""

    async def kill(self) -> None:
        await asyncio.sleep(1.0)
        await super().kill()


def test_a_start_waits_for_the_kill_before_it_whatever_was_said_in_between() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.HANG)
        await asyncio.sleep(0.5)
        bench.guard.force(Mode.FORCED_CLOSED)
        bench.guard.force(None)
        await asyncio.sleep(0.3)
        assert bench.mode is Mode.RESTARTING
        assert bench.engine.starts == 1
        await asyncio.sleep(2.0)
        assert (bench.mode, bench.engine.starts) == (Mode.CLOSED, 2)

    on_bench(use, engine=SlowKills("primary"))


def test_closing_leaves_no_task_of_starts_and_kills_that_are_under_way() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.HANG)
        await asyncio.sleep(0.5)
        bench.guard.force(Mode.FORCED_CLOSED)
        bench.guard.force(None)  # a second start waits beside the first
        await asyncio.sleep(0.1)
        await bench.guard.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    on_bench(use, engine=SlowKills("primary"))
