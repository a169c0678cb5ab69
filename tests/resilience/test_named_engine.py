"""A request for one engine alone that was never loaded: its load is a part of the request's life."""

import asyncio
from typing import Any

import pytest
from scheduling import PROMPT, WHOLE, World, in_world

from kensho.base.errors import DeadlineMissed, EngineError
from kensho.base.events import RequestFinished, RequestRejected
from kensho.testing.engine import ScriptedEngine

LOAD_S = 50.0


def outcomes(world: World) -> list[str]:
    return [event.outcome for event in world.of(RequestFinished)]


def on_demand(use: Any, **how: Any) -> World:
    def prepare(world: World) -> None:
        world.standby._start_s = LOAD_S

    return in_world(use, standby="on_demand", prepare=prepare, **how)


def test_its_deadline_is_told_while_it_loads_and_the_load_goes_on() -> None:
    async def use(world: World) -> None:
        due_s = world.clock.monotonic_s() + 1.0
        with pytest.raises(DeadlineMissed, match="no token by its deadline"):
            await world.ask(engine="standby", deadline_s=due_s)
        assert world.clock.monotonic_s() == due_s
        await asyncio.sleep(LOAD_S)
        assert await world.ask(engine="standby", deadline_s=world.clock.monotonic_s() + 0.1) == WHOLE
        assert world.standby.starts == 1

    assert outcomes(on_demand(use)) == ["deadline", "ok"]


def test_a_client_who_leaves_while_it_loads_has_one_outcome() -> None:
    async def use(world: World) -> None:
        task = asyncio.create_task(world.ask(engine="standby"))
        await asyncio.sleep(5.0)
        task.cancel()
        await asyncio.wait({task})

    assert outcomes(on_demand(use)) == ["cancelled"]


def test_all_who_ask_for_it_wait_for_one_load() -> None:
    async def use(world: World) -> None:
        due_s = world.clock.monotonic_s() + 60.0
        asking = [asyncio.create_task(world.ask(engine="standby", deadline_s=due_s)) for _ in range(5)]
        assert await world.ask() == WHOLE, "the other engine is not held up"
        assert await asyncio.gather(*asking) == [WHOLE] * 5
        assert world.standby.starts == 1

    assert outcomes(on_demand(use)) == ["ok"] * 6


@pytest.mark.parametrize("left_s", [-1.0, float("nan")])
def test_a_deadline_that_has_passed_loads_nothing(left_s: float) -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed):
            await world.ask(engine="standby", deadline_s=world.clock.monotonic_s() + left_s)
        assert world.standby.starts == 0

    assert len(on_demand(use).of(RequestRejected)) == 1


def test_one_that_does_not_load_is_told_with_what_to_do() -> None:
    async def use(world: World) -> None:
        world.standby.refuse_starts(9)
        with pytest.raises(EngineError, match="standby is"):
            await world.ask(engine="standby", deadline_s=world.clock.monotonic_s() + 60.0)
        assert await world.ask() == WHOLE

    assert outcomes(on_demand(use)) == ["failed", "ok"]


def test_closing_ends_the_load_and_tells_who_waits_for_it() -> None:
    async def use(world: World) -> None:
        task = asyncio.create_task(world.ask(engine="standby"))
        await asyncio.sleep(1.0)
        await world.scheduler.close()
        with pytest.raises(EngineError, match="being closed"):
            await task

    assert outcomes(on_demand(use)) == ["failed"]


def test_a_failover_that_must_load_its_engine_keeps_the_deadline_and_leaves_it_loaded() -> None:
    async def use(world: World) -> None:
        world.primary.refuse_starts(99)
        world.primary.die()
        due_s = world.clock.monotonic_s() + 5.0
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=due_s)
        assert world.clock.monotonic_s() == due_s
        await asyncio.sleep(LOAD_S)
        assert await world.ask() == WHOLE
        assert world.standby.starts == 1

    on_demand(use)


class Thinking(ScriptedEngine):
    async def logits(self, prompt_ids: list[int]) -> list[float]:
        return [0.5]


def test_logits_of_one_keep_their_deadline_while_it_loads() -> None:
    async def use(world: World) -> None:
        world.standby.__class__ = Thinking
        due_s = world.clock.monotonic_s() + 1.0
        with pytest.raises(DeadlineMissed):
            await world.scheduler.logits(PROMPT, engine="standby", deadline_s=due_s)
        assert world.clock.monotonic_s() == due_s
        assert await world.scheduler.logits(PROMPT, engine="standby", deadline_s=due_s + 60.0) == [0.5]

    assert outcomes(on_demand(use)) == ["deadline", "ok"]
