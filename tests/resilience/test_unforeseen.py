"""An exception that is none of ours: its reader must not take a part of an answer for the whole."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from scheduling import PROMPT, TEN, WHOLE, World, in_world

from kensho.base.errors import EngineError
from kensho.base.events import RequestFinished, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.circuit import BreakerSettings
from kensho.testing.engine import ScriptedEngine


class Odd(ScriptedEngine):
    """Its adapter has a bug, after `sound` tokens, in so many streams."""

    bugs, sound = 0, 2

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        made = 0
        async for token in super().generate(prompt_ids, accepted_ids, sampling):
            if self.bugs and made == self.sound:
                self.bugs -= 1
                raise RuntimeError("a bug in the adapter")
            made += 1
            yield token

    async def logits(self, prompt_ids: Sequence[int]) -> list[float]:
        if self.bugs:
            self.bugs -= 1
            raise OSError(24, "Too many open files")
        return [0.5]


def odd(bugs: int) -> Any:
    def prepare(world: World) -> None:
        world.primary.__class__ = world.standby.__class__ = Odd
        world.primary.bugs = bugs  # type: ignore[attr-defined]

    return prepare


def test_one_from_an_engine_counts_for_it_and_the_stream_goes_on_elsewhere() -> None:
    async def use(world: World) -> None:
        assert await world.ask() == WHOLE
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 1

    world = in_world(use, prepare=odd(1))
    assert [(event.outcome, event.failovers) for event in world.of(RequestFinished)] == [("ok", 1)]
    assert [(event.reason, event.accepted) for event in world.of(StreamMoved)] == [("engine", 2)]


def test_without_another_engine_it_reaches_the_reader_as_an_engine_error_with_its_cause() -> None:
    async def use(world: World) -> None:
        got: list[int] = []
        with pytest.raises(EngineError) as caught:
            async for token in world.scheduler.submit(PROMPT, TEN):
                got.append(token)
        assert got == WHOLE[: len(got)]
        cause = caught.value.__cause__
        assert isinstance(cause, EngineError)
        assert "RuntimeError: a bug in the adapter" in cause.message
        assert isinstance(cause.__cause__, RuntimeError)

    world = in_world(use, prepare=odd(99), engines=1, breaker=BreakerSettings(ramp_s=0.0, failure_threshold=99))
    assert [event.outcome for event in world.of(RequestFinished)] == ["failed"]


def test_a_call_in_one_piece_moves_too() -> None:
    async def use(world: World) -> None:
        assert await world.scheduler.logits(PROMPT) == [0.5]
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 1

    in_world(use, prepare=odd(1))


def test_a_fault_of_our_own_reaches_the_reader_and_is_nobodys_elses() -> None:
    async def use(world: World) -> None:
        world.primary.__class__ = Odd
        world.primary.bugs = 1  # type: ignore[attr-defined]
        told = world.scheduler._floor.emit

        def emit(event: Any) -> None:
            if isinstance(event, StreamMoved):
                raise ZeroDivisionError("a bug of ours")
            told(event)

        world.scheduler._floor.emit = emit
        got: list[int] = []
        with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
            async for token in world.scheduler.submit(PROMPT, TEN):
                got.append(token)
        assert got == WHOLE[:2]
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert world.scheduler.snapshot().circuits["standby"].counters.failures == 0
        assert world.scheduler.snapshot().running == 0
        world.scheduler._floor.emit = told
        assert await world.ask() == WHOLE

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["failed", "ok"]
