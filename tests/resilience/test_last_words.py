"""What a scheduler says when no engine is left, and what it does about an engine that hangs while nobody asks."""

import asyncio

import pytest
from scheduling import PROMPT, WHOLE, World, in_world

from kensho.base.errors import EngineError, EnginesOff
from kensho.resilience.canary import Canary
from kensho.resilience.circuit import Mode
from kensho.resilience.classify import FailureClass
from kensho.testing.engine import Fault


def refused(world: World, **how: float) -> "asyncio.Task[EngineError]":
    async def ask() -> EngineError:
        with pytest.raises(EngineError, match="no answer") as caught:
            await world.ask(**how)
        return caught.value

    return asyncio.create_task(ask())


def test_when_all_engines_are_out_the_error_says_when_to_come_back() -> None:
    async def use(world: World) -> None:
        for engine in ("primary", "standby"):
            world.scheduler.force(engine, Mode.FORCED_OPEN, 90.0)
        await asyncio.sleep(30.0)
        world.scheduler.force("standby", Mode.FORCED_OPEN)
        error = await refused(world)
        assert error.facts["retry_after_s"] == pytest.approx(60.0)
        assert error.advice == "try again in 60 s"

    in_world(use)


def test_engines_that_only_a_person_can_bring_back_name_no_moment() -> None:
    async def use(world: World) -> None:
        for engine in ("primary", "standby"):
            world.scheduler.force(engine, Mode.FORCED_OPEN)
        error = await refused(world)
        assert "retry_after_s" not in error.facts
        assert isinstance(error, EnginesOff)
        assert "kensho circuit ENGINE auto --model M" in error.advice

    in_world(use)


def test_an_engine_that_hangs_while_the_canary_is_learnt_is_not_waited_for() -> None:
    async def use(world: World) -> None:
        world.standby.inject(Fault("hang", 0))
        await asyncio.sleep(7.0)
        assert (world.scheduler.snapshot().circuits["standby"].counters.failures, world.standby.starts) == (1, 2)
        assert await world.ask() == WHOLE
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED

    in_world(use, canary=Canary(PROMPT))


def test_a_circuit_that_is_being_proven_may_be_asked_again_at_once() -> None:
    async def use(world: World) -> None:
        guard = world.scheduler._guards["primary"]
        permit = guard.admit()
        assert permit is not None
        guard.failed(permit, FailureClass.CRASH)
        assert guard.snapshot().back_in_s == 0.0
        guard.force(Mode.FORCED_OPEN, 5.0)
        assert guard.snapshot().back_in_s == pytest.approx(5.0)
        guard.force(Mode.FORCED_CLOSED, 5.0)
        assert guard.snapshot().back_in_s == 0.0

    in_world(use)
