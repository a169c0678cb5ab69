"""Which engines there are: one or two, hot or on demand, named, learned. Virtual time."""

import asyncio
from typing import Any

import pytest
from scheduling import PROMPT, TEN, WHOLE, World, in_world

from kensho.base.errors import ConfigError, EngineError
from kensho.base.events import RequestFinished, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.circuit import Mode
from kensho.resilience.guard import Canary
from kensho.testing.engine import Fault


def test_a_standby_on_demand_is_loaded_by_the_first_failover_and_not_before() -> None:
    async def use(world: World) -> None:
        await world.ask()
        assert not world.standby.is_alive
        assert world.scheduler.snapshot().slots == 1
        world.primary.inject(Fault("crash", 4))
        assert await world.ask() == WHOLE
        assert world.standby.starts == 1

    world = in_world(use, standby="on_demand")
    (moved,) = world.of(StreamMoved)
    assert moved.gap_ms == pytest.approx(100.0 + 30.0)


def test_a_hot_standby_takes_what_the_primary_has_no_slot_for() -> None:
    async def use(world: World) -> None:
        assert world.scheduler.snapshot().slots == 2
        assert await asyncio.gather(*[world.ask() for _ in range(4)]) == [WHOLE] * 4

    world = in_world(use)
    assert sorted(event.engine for event in world.of(RequestFinished)) == ["primary", "primary", "standby", "standby"]


def test_a_primary_that_does_not_start_leaves_the_work_to_the_standby_and_comes_later() -> None:
    async def use(world: World) -> None:
        assert await world.ask() == WHOLE
        await asyncio.sleep(30.0)
        assert await world.ask() == WHOLE

    world = in_world(use, prepare=lambda world: world.primary.refuse_starts(2))
    assert [event.engine for event in world.of(RequestFinished)] == ["standby", "primary"]


def test_without_any_engine_the_scheduler_does_not_open() -> None:
    def prepare(world: World) -> None:
        world.primary.refuse_starts(1)
        world.standby.refuse_starts(1)

    async def use(_: World) -> None:
        raise AssertionError("must not be reached")

    with pytest.raises(EngineError, match="no engine of model 'm' starts"):
        in_world(use, prepare=prepare)


def test_one_engine_alone_that_cannot_come_back_is_told_with_what_to_do() -> None:
    async def use(world: World) -> None:
        assert await world.ask() == WHOLE
        world.primary.inject(Fault("crash", 3))
        world.primary.refuse_starts(10)
        with pytest.raises(EngineError) as caught:
            await world.ask()
        assert "primary is HARD_OPEN" in caught.value.message
        assert caught.value.advice

    in_world(use, engines=1)


def test_one_engine_alone_goes_on_with_its_stream_when_it_is_back_within_seconds() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 3))
        assert await world.ask() == WHOLE

    world = in_world(use, engines=1)
    (finished,) = world.of(RequestFinished)
    assert (finished.outcome, finished.failovers) == ("ok", 1)
    assert 100.0 < finished.gap_ms < 500.0  # a start and two canaries


def test_a_named_engine_that_is_loaded_on_demand_is_loaded() -> None:
    async def use(world: World) -> None:
        assert not world.standby.is_alive
        assert await world.ask(engine="standby") == WHOLE
        assert (world.standby.starts, world.primary.starts) == (1, 1)

    in_world(use, standby="on_demand")


def test_a_named_engine_answers_alone_and_an_unknown_one_is_refused() -> None:
    async def use(world: World) -> None:
        assert await world.ask(engine="standby") == WHOLE
        with pytest.raises(ConfigError):
            world.scheduler.submit(PROMPT, TEN, engine="gpu")
        with pytest.raises(ConfigError):
            world.scheduler.force("gpu", None)

    world = in_world(use)
    assert [event.engine for event in world.of(RequestFinished)] == ["standby"]


@pytest.mark.parametrize("standby", ["hot", "on_demand"])
def test_an_unknown_canary_is_learned_once_and_then_proves_a_restarted_engine(standby: Any) -> None:
    canary = Canary([9])

    async def use(world: World) -> None:
        await asyncio.sleep(1.0)
        assert canary.is_known
        world.primary.inject(Fault("crash", 0), Fault("wrong", 0))
        await world.ask()
        await asyncio.sleep(1.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.OPEN

    world = in_world(use, canary=canary, standby=standby)
    assert world.standby.streams == (2 if standby == "hot" else 1)


def test_learning_the_canary_never_stands_before_a_request() -> None:
    async def use(world: World) -> None:
        reading = asyncio.create_task(world.ask(sampling=Sampling(max_tokens=300)))
        await asyncio.sleep(2.5)
        assert world.primary.streams == 1
        await reading
        await asyncio.sleep(1.5)
        assert world.primary.streams == 2

    in_world(use, canary=Canary([9]), standby="on_demand", before_s=0.5)
