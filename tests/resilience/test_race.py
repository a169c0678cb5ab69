"""A CRITICAL request that two engines race for: what becomes of it, and what is counted, when one of them is lost."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from scheduling import PROMPT, TEN, WHOLE, World, collect, in_world

from kensho.base.errors import EngineCrashed, PoisonRequest
from kensho.base.events import RequestFinished, RequestPoisoned, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.testing.engine import ScriptedEngine

DEADLY = [6, 6, 6, 6, 6]


class Delicate(ScriptedEngine):
    """Dies `after_s` of the deadly prompt; `after_s` of infinity: it takes its time, and lives."""

    after_s = float("inf")

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        if list(prompt_ids) == DEADLY:
            await asyncio.sleep(min(self.after_s, 0.9))
            if self.after_s < 0.9:
                self.die("SIGSEGV")
                raise EngineCrashed(f"the host of {self.name} is gone", signal="SIGSEGV")
        async for token in super().generate(prompt_ids, accepted_ids, sampling):
            yield token


def race(use: Any, primary_s: float, standby_s: float, **how: Any) -> World:
    """After enough requests to know what is late."""

    async def after_a_while(world: World) -> None:
        for engine, after_s in ((world.primary, primary_s), (world.standby, standby_s)):
            engine.__class__ = Delicate
            engine.after_s = after_s  # type: ignore[attr-defined]
        for _ in range(25):
            await world.ask(priority=Priority.CRITICAL)
        await use(world)

    return in_world(after_a_while, **how)


LIVES = float("inf")


def test_when_the_first_engine_dies_in_the_race_the_stream_has_moved() -> None:
    async def use(world: World) -> None:
        answer = world.scheduler.submit(DEADLY, TEN, priority=Priority.CRITICAL)
        assert len(await collect(answer)) == 10
        record = answer.record
        assert (record.engine, record.is_hedged, record.failovers) == ("standby", True, 1)
        assert record.gap_ms == record.first_token_ms == pytest.approx(90.0 + 900.0 + 30.0, abs=1.0)

    world = race(use, 0.5, LIVES)
    (moved,) = world.of(StreamMoved)
    assert (moved.from_engine, moved.to_engine, moved.accepted) == ("primary", "standby", 0)
    assert world.of(RequestFinished)[-1].failovers == 1


def test_when_the_second_engine_dies_in_the_race_the_stream_has_not_moved() -> None:
    async def use(world: World) -> None:
        answer = world.scheduler.submit(DEADLY, TEN, priority=Priority.CRITICAL)
        assert len(await collect(answer)) == 10
        assert (answer.record.engine, answer.record.failovers) == ("primary", 0)

    assert race(use, LIVES, 0.5).of(StreamMoved) == []


def test_a_deadly_prompt_that_is_hedged_ends_two_hosts_and_is_then_refused() -> None:
    async def use(world: World) -> None:
        for _ in range(3):
            starts = world.primary.starts + world.standby.starts
            with pytest.raises(PoisonRequest):
                await world.ask(prompt=DEADLY, priority=Priority.CRITICAL)
            await asyncio.sleep(30.0)
            restarted.append(world.primary.starts + world.standby.starts - starts)
        assert await world.ask() == WHOLE

    restarted: list[int] = []
    world = race(use, 0.5, 0.8)
    assert restarted == [2, 0, 0]
    assert len(world.of(RequestPoisoned)) == 1


def test_what_a_race_costs_is_spent_only_when_there_is_one() -> None:
    async def use(world: World) -> None:
        for _ in range(3):  # nobody else is there to ask: that must not cost what comes later
            busy = asyncio.create_task(world.ask(engine="standby", sampling=Sampling(max_tokens=300)))
            await asyncio.sleep(0.01)
            answer = world.scheduler.submit(DEADLY, TEN, priority=Priority.CRITICAL)
            await collect(answer)
            assert not answer.record.is_hedged
            await busy
        for _ in range(70):  # or slow would have become the rule
            await world.ask()
        answer = world.scheduler.submit(DEADLY, TEN, priority=Priority.CRITICAL)
        await collect(answer)
        assert answer.record.is_hedged

    race(use, LIVES, LIVES)


def test_a_death_in_the_race_that_an_answer_followed_is_forgotten() -> None:
    async def use(world: World) -> None:
        for _ in range(3):
            for _ in range(60):
                await world.ask(priority=Priority.CRITICAL, prompt=PROMPT)
            assert len(await world.ask(prompt=DEADLY, priority=Priority.CRITICAL)) == 10
            await asyncio.sleep(30.0)

    assert race(use, 0.5, LIVES).of(RequestPoisoned) == []
